"""The study of the same questions in several forms: the forms, and a check that a fault fails."""

import random

import pytest

from course_lib import plotting
from course_lib.studies import asking, load, tuning


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("chat, command", "<|user|> Give the plural of the word: car<|assistant|>"),
        ("own template", "<|user|> Give the plural of the word: car<|assistant|>"),
        ("space at its end", "<|user|> Give the plural of the word: car<|assistant|> "),
        ("plain command", "Give the plural of the word: car\n"),
        ("plain question", "What is the plural of car?\n"),
        ("after Q:", "Q: What is the plural of car?\nA:"),
    ],
)
def test_the_same_item_in_every_form(form, text):
    assert asking.written(form, "plural", "car", random.Random(0)) == text


def test_four_examples_are_training_items():
    lines = asking.written("four examples", "plural", "car", random.Random(0)).split("\n")
    assert len(lines) == 5 and lines[-1] == "car ->"
    assert not any(line.startswith("car ") for line in lines[:-1])


def test_an_answer_anywhere_is_a_whole_word():
    """ "cars" is in "A: cars, then", and not in "oscars"."""
    assert " cars " in f" {asking._words('A: cars, then')} "
    assert " cars " not in f" {asking._words('oscars')} "


@pytest.mark.parametrize("setting", asking.CHECKS)
def test_control_a_wrong_form_fails_the_check(setting):
    """The base model with "Q:" and no "A:", the instruct model with another template."""
    form = {"base": "plain question", "instruct": "other template"}[asking.GRID[setting]["stage"]]
    value = asking.run({**asking.GRID[setting], "form": form}, 9)["correct"]
    low, high = load("asking").interval_for_a_new_seed(setting, "correct")
    assert not low <= value <= high


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(tuning, "shipped", None)
    assert plotting.show(asking.draw(load("asking")), "bars").alt
