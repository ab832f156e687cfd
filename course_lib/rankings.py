"""Rankings of responses: the pairs that they hold, and the batches that they become.

People rank n responses to a prompt faster than they compare all n(n - 1)/2 pairs of them (Ouyang et
al., 2022, section 3.5). A reward model (``course_lib.reward``) learns from the pairs.
Simplified away: who ranked, how sure they were, several criteria at once.
"""

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from course_lib.chat import Format, course_format, encode_chat, turns
from course_lib.rows import pad_rows

RankedBatch = dict[str, Tensor]
"""What ``collate_rankings`` gives: B rankings of up to n responses of up to T tokens.

``input_ids`` and ``attention_mask``, (B, n, T), and ``ranks``, (B, n): 0 is the best, equal ranks
are ties, and ``ABSENT`` stands where a ranking has fewer than n responses.
"""
ABSENT = -1


def ranking_to_pairs(ranking: Sequence[Hashable]) -> list[tuple]:
    """All pairs of a ranking, n(n - 1)/2 of n items (Ouyang et al., 2022, section 3.5).

    Args:
        ranking: the items, the best first. A place may be a set of items that tie: they make no
            pair among themselves, and stand in the order of their ``repr``.

    Returns:
        (preferred, other), those of the best item first.

    Raises:
        ValueError: fewer than two items, nothing but ties, an item that stands there twice.

    Example:
        >>> ranking_to_pairs(["a", "b", "c"])
        [('a', 'b'), ('a', 'c'), ('b', 'c')]
        >>> ranking_to_pairs(["a", {"b", "c"}])
        [('a', 'b'), ('a', 'c')]
    """
    places = [sorted(place, key=repr) if isinstance(place, (set, frozenset)) else [place]
              for place in ranking]  # fmt: skip
    ranked = [(rank, item) for rank, place in enumerate(places) for item in place]
    if len(ranked) < 2:
        raise ValueError(f"A ranking needs two items to make a pair, got {len(ranked)}.")
    for (_, one), (_, other) in combinations(ranked, 2):
        if one == other:
            raise ValueError(
                f"{one!r} stands in the ranking twice, and nothing is better than itself: leave "
                "one of the two out."
            )
    pairs = [(a, b) for (i, a), (j, b) in combinations(ranked, 2) if i < j]
    if not pairs:
        raise ValueError(f"All {len(ranked)} items tie: there is no pair to learn from.")
    return pairs


def encode_completion(
    tokenizer, prompt: str, response: str, form: Format = course_format
) -> list[int]:  # fmt: skip
    """The token ids of a prompt with its response and what ends it: a row that is scored.

    They are those that a policy reads and writes in the same format.

    Raises:
        ValueError: a response without a word. (One that is meant, as a bad example:
            ``chat.encode_chat``.)
    """
    if not response.strip():
        raise ValueError(
            f"The response to {prompt!r} is empty: there is nothing to compare. Leave it out of "
            "the ranking."
        )
    return encode_chat(tokenizer, turns(prompt, response), form)["input_ids"]


def collate_rankings(
    rankings: Sequence[Sequence[tuple[Sequence[int], int]]], pad_token_id: int
) -> RankedBatch:
    """A batch of rankings, padded on the right and with absent responses.

    Args:
        rankings: of each, (token ids of prompt and response, rank): 0 is the best, equal ranks
            are ties. Any order.

    Raises:
        ValueError: no rankings; one of a single response, or in which all tie; a response without
            tokens, a negative rank; a response that is better than itself.

    Example: of three responses to 5, 5 8 is the best and the others tie; 6 has two responses.
        >>> batch = collate_rankings([[([5, 8], 0), ([5, 9, 9], 1), ([5, 7], 1)],
        ...                           [([6, 7], 1), ([6, 8, 9], 0)]], pad_token_id=0)
        >>> batch["input_ids"]
        tensor([[[5, 8, 0],
                 [5, 9, 9],
                 [5, 7, 0]],
        <BLANKLINE>
                [[6, 7, 0],
                 [6, 8, 9],
                 [0, 0, 0]]])
        >>> batch["attention_mask"]
        tensor([[[1, 1, 0],
                 [1, 1, 1],
                 [1, 1, 0]],
        <BLANKLINE>
                [[1, 1, 0],
                 [1, 1, 1],
                 [0, 0, 0]]])
        >>> batch["ranks"]
        tensor([[ 0,  1,  1],
                [ 1,  0, -1]])
    """
    for i, ranking in enumerate(rankings):
        _check_ranking(i, ranking)
    n = max(map(len, rankings), default=0)
    rows = [ids for ranking in rankings for ids in _filled([row for row, _ in ranking], n, [])]
    ranks = [_filled([rank for _, rank in ranking], n, ABSENT) for ranking in rankings]
    shape = (len(rankings), n, -1)
    return {
        "input_ids": pad_rows(rows, pad_token_id).view(shape),  # (B, n, T)
        "attention_mask": pad_rows([[1] * len(row) for row in rows], 0).view(shape),  # (B, n, T)
        "ranks": torch.tensor(ranks, dtype=torch.long),  # (B, n)
    }


def _filled(items: list, n: int, value: Any) -> list:
    return items + [value] * (n - len(items))


def _check_ranking(i: int, ranking: Sequence[tuple[Sequence[int], int]]) -> None:
    if len(ranking) < 2 or len({rank for _, rank in ranking}) < 2:
        raise ValueError(
            f"Ranking {i} has {len(ranking)} responses of ranks {[rank for _, rank in ranking]}: "
            "without two of different ranks there is no pair to learn from. Leave it out."
        )
    for row, rank in ranking:
        if not len(row) or rank < 0:
            raise ValueError(
                f"Ranking {i} has a response of {len(row)} tokens and rank {rank}: expected at "
                "least one token, and ranks from 0, the best, on."
            )
    for (one, rank), (other, other_rank) in combinations(ranking, 2):
        if rank != other_rank and list(one) == list(other):
            raise ValueError(
                f"Ranking {i} has the same response {list(one)} at ranks {rank} and {other_rank}, "
                "and nothing is better than itself: leave one of the two out."
            )
