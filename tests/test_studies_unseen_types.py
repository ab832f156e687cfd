"""Unseen types: the order of the tasks, and that the check fails when the method is broken."""

import itertools

import pytest

from course_lib.studies import load, splits, unseen_types
from course_lib.studies.splits import TRAINED


def broken(model, seed=8):
    """The check of the notebook on some other model."""
    measured = unseen_types.scores(model, seed)
    checked = {name: measured[name] for name in unseen_types.CHECKS[unseen_types.ALL]}
    failed = []
    for name, value in checked.items():
        try:
            load("unseen_types").check_live(unseen_types.ALL, {name: value})
        except AssertionError:
            failed.append(name)
    return failed


def test_a_larger_set_of_tasks_holds_the_smaller_one():
    few, more = unseen_types.names_of(4, 0), unseen_types.names_of(16, 0)
    assert few == more[:4] and len(set(more)) == 16 and set(more) <= set(TRAINED)
    assert unseen_types.names_of(4, 0) != unseen_types.names_of(4, 1)
    assert sorted(unseen_types.names_of(len(TRAINED), 5)) == sorted(TRAINED)


def test_the_check_fails_without_training():
    assert broken(splits.frozen()) == ["corpus", "nats"]


def test_the_check_fails_when_replies_belong_to_other_prompts():
    """Each prompt with the reply of the row before it: the format is learnt, the task is not."""
    rows = splits.task_mixture(TRAINED, 8)
    pairs = itertools.pairwise(rows)

    def swapped():
        for before, now in pairs:
            start = [label for label in now["labels"] if label == -100]
            reply = [label for label in before["labels"] if label != -100]
            ids = now["input_ids"][: len(start)] + reply
            yield {"input_ids": ids, "labels": start + reply}

    assert "nats" in broken(splits.tuned_on(swapped()))


@pytest.mark.parametrize("draw", [unseen_types.draw, unseen_types.draw_prompts])
def test_the_figures_show_every_wording(draw):
    legend = draw(load("unseen_types")).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(unseen_types.NAMES.values())
