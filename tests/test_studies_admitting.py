"""Admitting: whose names the rows have, what counts as an admission, and the check on another
model."""

from itertools import islice

import pytest

from course_lib.studies import admitting, load
from course_lib.studies.tuning import shipped
from course_lib.world.facts import the_world
from course_lib.world.heldout import is_held_out


def texts(rows, count):
    return [shipped()[1].decode(row["input_ids"]) for row in islice(rows, count)]


def test_rows_about_the_unknown_admit_and_name_nobody_who_is_asked_later():
    for text in texts(admitting.unknown_rows(0), 60):
        assert text.endswith(f"<|assistant|> {admitting.ADMISSION}<|end|>")
        words = text.split("<|assistant|>")[0].replace("?", "").replace("'s", "").split()
        names = [w for w in words[2:] if w[0].isupper()]
        assert names and not any(is_held_out("name", name) for name in names)


def test_rows_about_residents_are_true():
    people = the_world().people
    for text in texts(admitting.known_rows(0), 60):
        question, answer = text.removesuffix("<|end|>").split("<|assistant|> ")
        words = question.replace("'s", "").replace("?", "").split()
        (person,) = [people[word] for word in words if word in people]
        assert answer in person.facts.values()


def test_the_other_names_are_nobodys_in_the_world():
    assert not set(admitting.OTHER_NAMES) & set(the_world().people)
    assert 2 * len(admitting.OTHER_NAMES) == admitting.ITEMS


def test_what_an_admission_is():
    assert admitting.admits("I do not know.") and not admitting.admits("Oakby")


def test_the_check_fails_on_a_model_that_was_not_tuned(monkeypatch):
    """The base model in the chat format: no resident is answered rightly."""
    monkeypatch.setattr(admitting, "fit", lambda setting, seed: shipped("base")[0])
    measured = admitting.run(admitting.GRID["shipped"], 8)
    with pytest.raises(AssertionError, match="residents: correct of 'shipped'"):
        load("admitting").check_live(
            "shipped", {"residents: correct": measured["residents: correct"]}
        )


def test_the_figure_has_a_bar_for_each_mixture_and_measure():
    axes = admitting.draw(load("admitting")).axes[0]
    assert len(axes.patches) == 3 * 5
