"""Limits of labels: the floor by hand, the share of wrong labels, and broken methods."""

import math
from itertools import islice

import pytest

from course_lib.studies import label_limits, load, splits
from course_lib.studies.tuning import shipped


def test_the_floor_is_the_mean_entropy_of_the_kinds(monkeypatch):
    """Kinds of 2 and 8 words: (log 2 + log 8) / 2 = log 4."""
    monkeypatch.setattr(label_limits.lexicon, "CATEGORIES", {"a": range(2), "b": range(8)})
    assert label_limits.floor(("a", "b")) == pytest.approx(math.log(4))


@pytest.mark.parametrize("wrong", [0.0, 0.4, 1.0])
def test_so_many_labels_are_wrong(wrong):
    """Of 500 labels 0, about 200 (± 4 · 11) and 500. The opinions are the same for every share."""
    some = list(islice(label_limits.demonstrations(wrong, 0), 500))
    true = list(islice(label_limits.demonstrations(0.0, 0), 500))
    if wrong in (0.0, 1.0):
        assert sum(a != b for a, b in zip(some, true, strict=True)) == 500 * wrong
    else:
        tokens = [shipped()[1](f" {side}")["input_ids"] for side in label_limits.SIDES]
        assert all(len(ids) == 1 for ids in tokens)
        positive = sum(tokens[0][0] in row["labels"] for row in some)
        assert 180 < positive < 320  # both labels occur, whatever the opinions


def test_the_check_of_naming_fails_without_training(monkeypatch):
    monkeypatch.setattr(label_limits.splits, "tuned_on", lambda rows, start, **_: start)
    measured = label_limits.run(label_limits.GRID["naming"], 8)
    with pytest.raises(AssertionError, match="loss of 'naming'"):
        load("label_limits").check_live("naming", {"loss": measured["loss"]})


def test_the_check_fails_when_most_labels_are_wrong():
    setting = "20 % wrong, 1024 labels"
    measured = label_limits.run(label_limits.GRID[setting] | {"wrong": 0.8}, 8)
    with pytest.raises(AssertionError, match="likeliest of"):
        load("label_limits").check_live(setting, {"likeliest": measured["likeliest"]})


def test_the_teachers_stand_where_their_labels_are_right():
    lines = label_limits.draw(load("label_limits")).axes[0].get_lines()
    dotted = [float(line.get_xdata()[0]) for line in lines if line.get_linestyle() == ":"]
    assert dotted == [0.8, 0.6, 0.6]


def test_no_label_of_a_row_belongs_to_the_prompt():
    row = next(label_limits.demonstrations(0.0, 0))
    kept = [label for label in row["labels"] if label != -100]
    assert shipped()[1].decode(kept).replace("<|end|>", "").strip() in label_limits.SIDES
    assert splits.ROWS * 64 == 1024
