"""Rankings: all their pairs, the batch with absent responses, what no ranking may have."""

import doctest
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import ranking_lists
from text_models import Words

from course_lib import rankings
from course_lib.chat import encode_chat, turns
from course_lib.rankings import (
    ABSENT,
    collate_rankings,
    encode_completion,
    ranking_to_pairs,
)


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(rankings)
    assert result.attempted == 6 and not result.failed


# --- pairs --------------------------------------------------------------------------------------


def test_four_items_make_six_pairs_the_better_one_first():
    """Neighbours alone would be three, and each with each other one twelve."""
    assert ranking_to_pairs(["d", "a", "c", "b"]) == [
        ("d", "a"), ("d", "c"), ("d", "b"), ("a", "c"), ("a", "b"), ("c", "b"),
    ]  # fmt: skip


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(), min_size=2, max_size=9, unique=True))
def test_n_items_make_n_choose_2_pairs(items):
    pairs = ranking_to_pairs(items)
    assert len(pairs) == len(set(pairs)) == comb(len(items), 2)
    assert all(items.index(better) < items.index(other) for better, other in pairs)


def test_items_that_tie_make_no_pair_among_themselves():
    """Of five items, two and two of which tie, 10 - 2 pairs are left, whatever the order in which
    a set is read."""
    assert ranking_to_pairs([{"c", "b"}, "a", frozenset({"e", "d"})]) == [
        ("b", "a"), ("b", "d"), ("b", "e"), ("c", "a"), ("c", "d"), ("c", "e"), ("a", "d"),
        ("a", "e"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ([], "two items to make a pair, got 0"),
        (["a"], "two items to make a pair, got 1"),
        ([{"a"}], "two items to make a pair, got 1"),
        ([{"a", "b"}], "All 2 items tie"),
        (["a", "b", "a"], "'a' stands in the ranking twice"),
        ([{"a", "b"}, "a"], "'a' stands in the ranking twice"),
        ([(5, 6), (5, 6)], r"\(5, 6\) stands in the ranking twice"),
    ],
)
def test_rankings_without_a_pair_or_with_an_item_twice_are_told(ranking, message):
    with pytest.raises(ValueError, match=message):
        ranking_to_pairs(ranking)


# --- batches ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ranking_lists(), st.integers(0, 12))
def test_a_batch_holds_what_was_put_in_and_nothing_else(rows, pad):
    """Padding may be a token that stands in the rows, too."""
    batch = collate_rankings(rows, pad)
    B, n, T = batch["input_ids"].shape
    assert (B, n) == (len(rows), max(map(len, rows))) and batch["ranks"].shape == (B, n)
    for b, ranking in enumerate(rows):
        for i in range(n):
            kept = batch["attention_mask"][b, i].bool()
            row, rank = ranking[i] if i < len(ranking) else ([], ABSENT)
            assert batch["input_ids"][b, i][kept].tolist() == list(row)
            assert batch["ranks"][b, i] == rank
            assert torch.equal(kept, torch.arange(T) < len(row))
            assert (batch["input_ids"][b, i][~kept] == pad).all()


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ([([5], 0)], r"Ranking 1 has 1 responses of ranks \[0\]"),
        ([], "Ranking 1 has 0 responses"),
        ([([5], 1), ([6], 1)], r"2 responses of ranks \[1, 1\]"),
        ([([5], 0), ([], 1)], "a response of 0 tokens and rank 1"),
        ([([5], 0), ([6], -1)], "rank -1"),
        ([([5, 6], 0), ([7], 1), ([5, 6], 2)], r"the same response \[5, 6\] at ranks 0 and 2"),
    ],
)
def test_rankings_that_teach_nothing_or_contradict_themselves_are_told(ranking, message):
    fine = [([5], 0), ([6], 1)]
    with pytest.raises(ValueError, match=message):
        collate_rankings([fine, ranking], 0)


def test_a_response_that_ties_with_itself_and_no_ranking_at_all():
    """Sampled twice, it is no contradiction; a batch of nothing is an error."""
    batch = collate_rankings([[([5], 0), ([6], 1), ([5], 0)]], 0)
    assert batch["ranks"].tolist() == [[0, 1, 0]]
    with pytest.raises(ValueError, match="no rows"):
        collate_rankings([], 0)


# --- rows ---------------------------------------------------------------------------------------


def test_a_row_is_prompt_response_and_end_in_the_format_of_chats():
    class Chats(Words):
        def __call__(self, text, add_special_tokens=True):
            for mark in ("<|user|>", "<|assistant|>", "<|end|>"):
                text = text.replace(mark, f" {mark} ")
            return super().__call__(text, add_special_tokens)

    tokenizer = Chats("<|end|> <pad> <|user|> <|assistant|> plural: dog dogs")
    assert encode_completion(tokenizer, "plural: dog", "dogs") == [2, 4, 5, 3, 6, 0]
    with pytest.raises(ValueError, match="response to 'plural: dog' is empty"):
        encode_completion(tokenizer, "plural: dog", " \n")
    meant = encode_chat(tokenizer, turns("dog", ""))  # an empty one that is a bad example
    assert meant["input_ids"] == [2, 5, 3, 0]
