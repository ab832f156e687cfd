"""Three ways: labels of the task, prompts, and the check without what tells the task."""

import pytest

from course_lib.studies import load, three_ways
from course_lib.studies.splits import TRAINED, UNSEEN
from course_lib.studies.tuning import shipped
from course_lib.world.tasks import HELD_OUT_PAIRS


def test_the_task_is_of_an_unseen_type_and_another_one_for_each_seed():
    names = [three_ways.task_of(seed) for seed in three_ways.SEEDS]
    assert len(set(names)) == 8 and set(names) <= set(UNSEEN) - set(TRAINED)
    assert three_ways.task_of(8) == names[0]


@pytest.mark.parametrize("name", three_ways.TASKS)
def test_the_labels_are_different_and_none_is_held_out(name):
    rows = three_ways.labelled(name, max(three_ways.LABELS), 0)
    texts = {shipped()[1].decode(row["input_ids"]) for row in rows}
    assert len(texts) == 48
    replies = {shipped()[1].decode([i for i in row["labels"] if i != -100]) for row in rows}
    assert all(reply.endswith("<|end|>") for reply in replies)


def test_prompts_hold_as_many_examples_as_the_setting_says():
    bare = three_ways.prompts_of({"examples": 0}, 1)
    four = three_ways.prompts_of({"examples": 4}, 1)
    assert {prompt.count("\n") for prompt, _ in four} == {4}
    assert {prompt.count("\n") for prompt, _ in bare} == {0}
    held_out = {y for _, y in HELD_OUT_PAIRS}
    assert {y for _, y in bare + four} <= held_out


def test_the_check_fails_when_nothing_says_what_is_wanted():
    measured = three_ways.run(three_ways.GRID["bare list"], 8)["A"]
    with pytest.raises(AssertionError, match="the study three_ways predicts"):
        load("three_ways").check_live("corpus's question", {"A": measured})


def test_the_figure_has_a_line_for_each_way():
    legend = three_ways.draw(load("three_ways")).axes[0].get_legend()
    assert len(legend.get_texts()) == 5
