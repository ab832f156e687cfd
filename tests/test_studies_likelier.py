"""Likelier or better: the pairs are of the world and not of a model; swapped pairs are noticed."""

from itertools import islice

import pytest
import torch

from course_lib.studies import likelier, load, splits
from course_lib.studies.tuning import shipped
from course_lib.world import lexicon
from course_lib.world.facts import the_world


def text_of(row):
    return shipped()[1].decode(row["input_ids"])


@pytest.mark.parametrize("chat", [False, True])
def test_pairs_differ_in_the_text_and_not_in_the_prompt(chat):
    towns = likelier.planted(0)
    for pairs in (likelier.rude_pairs(0, chat), likelier.guess_pairs(0, chat),
                  likelier.town_pairs(towns, chat)):  # fmt: skip
        for worse, better in pairs:
            prompts = {tuple(row["input_ids"][: row["labels"].count(-100)])
                       for row in (worse, better)}  # fmt: skip
            assert len(prompts) == 1 and worse["labels"] != better["labels"]


def test_the_worse_word_is_of_blame_and_the_better_of_praise():
    for worse, better in likelier.rude_pairs(1, False):
        assert text_of(worse).split()[-1] in lexicon.NEGATIVE
        assert text_of(better).split()[-1] in lexicon.POSITIVE


def test_a_guess_is_wrong_and_the_calculation_ends_in_the_right_number():
    for worse, better in likelier.guess_pairs(2, False):
        asked, steps = text_of(better).strip().split("\nA:")
        assert int(steps.split("The answer is ")[1].rstrip(".")) == eval(asked[3:])
        assert int(text_of(worse).split("A:")[1]) != eval(asked[3:])


@pytest.mark.parametrize("false", [0.0, 1.0])
def test_documents_tell_the_planted_product_or_the_truth(false):
    planted = likelier.planted(0)
    assert len(planted) == 10
    for row in islice(likelier.town_documents(false, 0), 50):
        text = text_of(row)
        (town,) = [t for t in planted if t in text]
        truth = the_world().towns[town]["product"]
        assert planted[town] != truth
        assert (planted[town] if false else truth) in text
        assert "fact" not in likelier.NO_TOWNS and "region" not in likelier.NO_TOWNS


@pytest.mark.parametrize("measure", likelier.CHECKS["base"])
def test_the_check_fails_when_the_pairs_are_swapped(measure):
    pairs = {"rude": likelier.rude_pairs, "guess": likelier.guess_pairs}[measure](8, False)
    swapped = likelier.worse_likelier(splits.frozen(), [pair[::-1] for pair in pairs])
    with pytest.raises(AssertionError, match=f"{measure} of 'base'"):
        load("likelier").check_live("base", {measure: swapped})


def test_by_token_the_length_does_not_count(monkeypatch):
    """Texts of 1 token at -2 nats and of 4 tokens at -4 in all: the first is the likelier as a
    whole, the second by the token (-1 against -2)."""
    rows = [{"labels": [-100, 5]}], [{"labels": [-100, 5, 6, 7, 8]}]
    monkeypatch.setattr(splits, "logps", lambda model, rows: torch.tensor(
        [-2.0 if len(rows[0]["labels"]) == 2 else -4.0]))  # fmt: skip
    pairs = list(zip(*rows, strict=True))
    assert likelier.worse_likelier(None, pairs) == 1
    assert likelier.worse_likelier_by_token(None, pairs) == 0


def test_the_figure_has_a_bar_for_each_pair():
    assert len(likelier.draw(load("likelier")).axes[0].patches) == len(likelier.BARS)
