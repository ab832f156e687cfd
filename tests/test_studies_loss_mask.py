"""The study of which tokens carry the loss: its rows, and checks that a fault fails."""

from itertools import islice

import pytest

from course_lib import plotting
from course_lib.studies import load, loss_mask, tuning

SEED = 9


def outside(setting, measure, value):
    low, high = load("loss_mask").interval_for_a_new_seed(setting, measure)
    return not low <= value <= high


def test_only_the_last_label_goes():
    """The end: [.., 8, 0] becomes [.., 8, -100], and the ids stay."""
    row = {"input_ids": [2, 5, 3, 8, 0], "labels": [-100, -100, -100, 8, 0]}
    assert list(loss_mask.without_end([row])) == [
        {"input_ids": [2, 5, 3, 8, 0], "labels": [-100, -100, -100, 8, -100]}
    ]


def test_few_examples_come_back():
    """Eight a task of eight tasks: 64 rows, then the same ones again in another order."""
    _, tokenizer = tuning.shipped()
    some = [str(row) for row in islice(loss_mask.stream_of(tokenizer, 0, few=True), 128)]
    assert sorted(some[:64]) == sorted(some[64:]) and some[:64] != some[64:]
    fresh = {str(row) for row in islice(loss_mask.stream_of(tokenizer, 0), 128)}
    assert len(fresh) > 64


def test_control_labels_on_the_prompt_fail_the_check(monkeypatch):
    """Question learnt, answer not: no answer is right, and nearly no reply ends."""
    real = loss_mask.stream_of

    def inverted(*args, **how):
        for row in real(*args, **how):
            pairs = zip(row["input_ids"], row["labels"], strict=True)
            yield {**row, "labels": [i if label == -100 else -100 for i, label in pairs]}

    monkeypatch.setattr(loss_mask, "stream_of", inverted)
    measures = loss_mask.run(loss_mask.GRID["response"], SEED)
    assert outside("response", "correct", measures["correct"])
    assert outside("response", "well formed", measures["well formed"])


def test_control_a_prompt_mask_fails_the_check_of_whole_chats():
    measures = loss_mask.run(loss_mask.GRID["response"], SEED)
    assert outside("whole chat", "prompt nats", measures["prompt nats"])


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(tuning, "shipped", None)
    assert plotting.show(loss_mask.draw(load("loss_mask")), "panels").alt


@pytest.mark.parametrize("setting", loss_mask.GRID)
def test_each_setting_has_every_measure(setting):
    for measure in ("correct", "well formed", "prompt nats"):
        assert len(load("loss_mask").of(setting, measure)) == len(loss_mask.SEEDS)
