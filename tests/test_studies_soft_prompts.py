"""The study of soft prompts: what is asked, what is learnt, and a check that a fault fails."""

import pytest
import torch

from course_lib import plotting
from course_lib.studies import load, soft_prompts
from course_lib.studies.tuning import shipped
from course_lib.world.heldout import is_held_out
from course_lib.world.tasks import TABLES


def outside(value):
    low, high = load("soft_prompts").interval_for_a_new_seed("plural, P=5", "correct")
    return not low <= value <= high


@pytest.mark.parametrize("task", soft_prompts.TASKS)
def test_no_question_is_trained_on(task):
    trained, asked = soft_prompts.pairs_of(task, 3)
    assert trained and asked and not set(dict(trained)) & set(dict(asked))
    if task in TABLES:
        assert all(is_held_out("item", task, word) for word, _ in asked)
        assert all(TABLES[task][word] == answer for word, answer in trained + asked)


def test_labels_are_the_answer_and_the_line_break():
    _, tokenizer = shipped("base")
    row = soft_prompts.encode(tokenizer, "goose", "geese")
    assert tokenizer.decode(row["input_ids"]).strip() == "goose -> geese"
    answer = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(answer) == " geese\n"


def test_the_base_model_is_left_as_it_was():
    start, _ = shipped("base")
    before = {name: p.clone() for name, p in start.named_parameters()}
    soft_prompts.run({"task": "plural", "tokens": 1}, 9)
    assert all(torch.equal(before[name], p) for name, p in start.named_parameters())
    assert all(p.requires_grad for p in start.parameters())


def test_control_a_prompt_that_learnt_nothing_fails_the_check():
    start = load("soft_prompts").of("plural, P=5", "at the start")
    assert all(outside(value) for value in start)


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(soft_prompts, "shipped", None)
    assert plotting.show(soft_prompts.draw(load("soft_prompts")), "lines").alt


@pytest.mark.parametrize("setting", soft_prompts.GRID)
def test_each_setting_has_every_measure(setting):
    for measure in ("correct", "at the start"):
        assert len(load("soft_prompts").of(setting, measure)) == len(soft_prompts.SEEDS)
