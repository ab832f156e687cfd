"""Measures of retrieval: was the right thing found, and how far up?

``gains`` says how relevant each document is to a query (``qrels[query]``; not there = 0),
``scores`` what the search gave those that it found (``results[query]``). Documents with equal
scores are in no order, so each measure is its mean over all orders of them, in closed form
(McSherry and Najork, 2008). A search that found nothing counts 0.
Simplified away: documents that nobody judged are not relevant; ties with what the search cut off.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby

from course_lib.measuring import pass_at_k

Gains = Mapping[str, float]
"""Document -> its gain, >= 0; above 0 it is relevant."""
Scores = Mapping[str, float]
"""Document -> its score, the highest is the best."""


def recall_at_k(gains: Gains, scores: Scores, k: int) -> float:
    """The share of the relevant documents that stand among the first k.

    Raises (as all measures here do):
        ValueError: no relevant document, a negative gain, a gain or score that is no number, a k
            below 1.

    Example: four are relevant, one of them is found first.
        >>> recall_at_k({"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 0.9, "x": 0.1}, k=1)
        0.25
    """
    return _found(gains, scores, k) / _relevant(gains.values())


def precision_at_k(gains: Gains, scores: Scores, k: int) -> float:
    """The share of the first k places that have a relevant document; empty places have none."""
    return _found(gains, scores, k) / k


def hit_at_k(gains: Gains, scores: Scores, k: int) -> float:
    """1 if a relevant document stands among the first k, else 0; between 0 and 1 with ties."""
    for start, group in _groups(gains, scores, k):
        if (relevant := _relevant(group)) > 0:
            return pass_at_k(len(group), relevant, min(k - start, len(group)))
    return 0.0


def reciprocal_rank(gains: Gains, scores: Scores, k: int | None = None) -> float:
    """1 / rank of the first relevant document, 0 if there is none (among the first k).

    Its mean over queries is the MRR. Of n tied documents, r relevant, the first relevant one stands
    at place j of the group in C(n - j, r - 1) of C(n, r) orders.
    """
    for start, group in _groups(gains, scores, k):
        if (r := _relevant(group)) > 0:
            n = len(group)
            last = n - r + 1 if k is None else min(n - r + 1, k - start)
            return sum(math.comb(n - j, r - 1) / math.comb(n, r) / (start + j)
                       for j in range(1, last + 1))  # fmt: skip
    return 0.0


def average_precision(gains: Gains, scores: Scores) -> float:
    """The mean, over the relevant documents, of the precision at their ranks; 0 if not found.

    Its mean over queries is the MAP. A place j of n tied documents, r relevant, has a relevant one
    with probability r / n, and then (j - 1)(r - 1) / (n - 1) of those before it are expected to be.
    """
    total, before = 0.0, 0
    for start, group in _groups(gains, scores):
        n, r = len(group), _relevant(group)
        for j in range(1, n + 1):
            tied = (j - 1) * (r - 1) / (n - 1) if n > 1 else 0.0
            total += r / n * (before + 1 + tied) / (start + j)
        before += r
    return total / _relevant(gains.values())


def ndcg_at_k(gains: Gains, scores: Scores, k: int | None = None) -> float:
    """Gains, each divided by log2(1 + rank), over what the best order would have (nDCG).

    Järvelin and Kekäläinen, 2002, with the discount that trec_eval has. Tied documents share the
    mean of their gains. Without k, all ranks count.

    Example: b is relevant and ties with a: half 1, half 1 / log2(3) = 0.6309.
        >>> round(ndcg_at_k({"b": 1}, {"a": 0.5, "b": 0.5}, k=2), 4)
        0.8155
    """
    dcg = 0.0
    for start, group in _groups(gains, scores, k):
        end = start + len(group) if k is None else min(start + len(group), k)
        dcg += sum(group) / len(group) * sum(map(_discount, range(start + 1, end + 1)))
    best = sorted(gains.values(), reverse=True)[:k]
    return dcg / sum(gain * _discount(rank) for rank, gain in enumerate(best, start=1))


def evaluate_retrieval(
    qrels: Mapping[str, Gains], results: Mapping[str, Scores], k: int
) -> dict[str, float]:
    """The mean of each measure over the queries of ``qrels``; one without results counts 0.

    Args:
        qrels: query -> document -> gain. Queries that are in ``results`` alone are not counted.
        results: query -> document -> score.

    Returns:
        ``recall@k``, ``hit@k``, ``precision@k`` and ``ndcg@k`` with the number in the place of k,
        and over all ranks ``mrr`` and ``map``.

    Raises:
        ValueError: no queries; and as the measures.
    """
    if not qrels:
        raise ValueError("There are no queries to average over: qrels is empty.")
    at_k = {"recall": recall_at_k, "hit": hit_at_k, "precision": precision_at_k, "ndcg": ndcg_at_k}
    measures = {f"{name}@{k}": partial(measure, k=k) for name, measure in at_k.items()}
    measures |= {"mrr": reciprocal_rank, "map": average_precision}
    return {
        name: math.fsum(measure(gains, results.get(query, {})) for query, gains in qrels.items())
        / len(qrels)
        for name, measure in measures.items()
    }


def _groups(
    gains: Gains, scores: Scores, k: int | None = None
) -> Iterator[tuple[int, list[float]]]:
    """(documents before, gains) of each group of equal scores that begins among the first k."""
    _check(gains, scores, k)
    start = 0
    ranked = sorted(scores, key=scores.__getitem__, reverse=True)
    for _, tied in groupby(ranked, key=scores.__getitem__):
        group = [gains.get(document, 0) for document in tied]
        if k is None or start < k:
            yield start, group
        start += len(group)


def _found(gains: Gains, scores: Scores, k: int) -> float:
    """How many of the first k are relevant; a group that k cuts has each with the same chance."""
    return sum(_relevant(group) * min(k - start, len(group)) / len(group)
               for start, group in _groups(gains, scores, k))  # fmt: skip


def _relevant(gains: Iterable[float]) -> int:
    return sum(gain > 0 for gain in gains)


def _discount(rank: int) -> float:
    return 1 / math.log2(1 + rank)


def _check(gains: Gains, scores: Scores, k: int | None) -> None:
    if not all(gain >= 0 and math.isfinite(gain) for gain in gains.values()):
        raise ValueError(f"Gains must be finite and 0 or more, got {dict(gains)}.")
    if not _relevant(gains.values()):
        raise ValueError(
            "No document is relevant, so there is nothing to find: leave the query out, and "
            "measure by abstention what has no answer."
        )
    if any(math.isnan(score) for score in scores.values()):
        raise ValueError("A score is NaN: it has no place in a ranking.")
    if k is not None and k < 1:
        raise ValueError(f"The first k places need a k of 1 or more, got {k}.")
