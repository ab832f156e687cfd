"""Measures of retrieval: by hand, against all orders of what ties, against trec_eval."""

import doctest
import math
from fractions import Fraction
from itertools import permutations, product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from course_lib.rag import metrics
from course_lib.rag.metrics import (
    average_precision,
    evaluate_retrieval,
    hit_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
)

AT_K = [recall_at_k, precision_at_k, hit_at_k, reciprocal_rank, ndcg_at_k]
DISCOUNT_2, DISCOUNT_3 = 1 / math.log2(3), 1 / 2
"""0.6309 at rank 2, 0.5 at rank 3."""


def ranked(*documents: str) -> dict[str, float]:
    """Scores that put the documents in this order."""
    return {document: -float(place) for place, document in enumerate(documents)}


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(metrics)
    assert result.attempted == 2 and not result.failed


# --- by hand ------------------------------------------------------------------------------------


def test_one_ranking_by_hand():
    """Relevant are a, b and c; found are x a y b. Precision at a is 1/2, at b 2/4, and c is lost:
    average precision 1/3 · (1/2 + 1/2). A mean over those found alone would be 1/2."""
    gains, scores = {"a": 1, "b": 1, "c": 1}, ranked("x", "a", "y", "b")
    assert recall_at_k(gains, scores, 2) == pytest.approx(1 / 3)
    assert recall_at_k(gains, scores, 9) == pytest.approx(2 / 3)
    assert precision_at_k(gains, scores, 2) == 1 / 2
    assert precision_at_k(gains, scores, 8) == 2 / 8  # places that stay empty count
    assert hit_at_k(gains, scores, 1) == 0 and hit_at_k(gains, scores, 2) == 1
    assert reciprocal_rank(gains, scores) == 1 / 2
    assert reciprocal_rank(gains, scores, k=1) == 0
    assert average_precision(gains, scores) == pytest.approx(1 / 3)
    assert ndcg_at_k(gains, scores, 2) == pytest.approx(DISCOUNT_2 / (1 + DISCOUNT_2))


def test_gains_of_several_sizes():
    """Best is 3, 1; found 1, 0, 3: (1 + 3/2) / (3 + 0.6309). Gains 2^g - 1 would give another."""
    gains, scores = {"a": 3, "b": 1, "c": 0}, ranked("b", "c", "a")
    assert ndcg_at_k(gains, scores) == pytest.approx((1 + 3 * DISCOUNT_3) / (3 + DISCOUNT_2))
    assert ndcg_at_k(gains, scores, 1) == pytest.approx(1 / 3)
    assert recall_at_k(gains, scores, 2) == 1 / 2  # a gain of 0 is not relevant


def test_recall_at_small_k_is_a_share_of_all_that_is_relevant():
    """Four are relevant, and the one place has one of them: 0.25, not 1."""
    assert recall_at_k(dict.fromkeys("abcd", 1), ranked("a", "x"), 1) == 0.25


def test_two_that_tie_are_half_of_each_order():
    """b is relevant and ties with a: first with 1/2, second with 1/2. By name it would be second
    (nDCG 0.6309), by luck first (1)."""
    gains, scores = {"b": 1}, {"a": 0.5, "b": 0.5}
    assert ndcg_at_k(gains, scores, 2) == pytest.approx(0.8155, abs=1e-4)
    assert ndcg_at_k(gains, scores, 1) == 0.5
    assert [f(gains, scores, 1) for f in (recall_at_k, precision_at_k, hit_at_k)] == [0.5] * 3
    assert reciprocal_rank(gains, scores) == average_precision(gains, scores) == 0.75
    assert reciprocal_rank(gains, scores, k=1) == 0.5


def test_three_that_tie_behind_another():
    """x, then {a, b, y} in six orders with a and b relevant. Their ranks are 2, 3 or 2, 4 or 3, 4,
    each with 1/3: reciprocal rank (1/2 + 1/2 + 1/3) / 3; average precision ((1/2 + 2/3) + (1/2 +
    2/4) + (1/3 + 2/4)) / 6; one of the first two places is relevant with 2/3."""
    gains, scores = {"a": 1, "b": 1}, {"x": 2.0, "a": 1.0, "y": 1.0, "b": 1.0}
    assert reciprocal_rank(gains, scores) == pytest.approx(4 / 9)
    assert average_precision(gains, scores) == pytest.approx(1 / 2)
    assert hit_at_k(gains, scores, 2) == pytest.approx(2 / 3)
    assert hit_at_k(gains, scores, 3) == 1
    assert recall_at_k(gains, scores, 2) == pytest.approx(1 / 3)


@pytest.mark.parametrize("scores", [{}, {"x": 1.0}])
def test_a_search_that_found_nothing_counts_0(scores):
    assert [measure({"a": 1}, scores, 3) for measure in AT_K] == [0] * 5
    assert average_precision({"a": 1}, scores) == 0


# --- laws ---------------------------------------------------------------------------------------


def in_order(gains: list[int], relevant: int, ideal: list[int], k: int) -> dict[str, Fraction]:
    """All measures of one order without ties, by their definitions."""
    hits = [gain > 0 for gain in gains]
    dcg, best = (
        sum(gain / math.log2(2 + i) for i, gain in enumerate(values[:k]))
        for values in (gains, ideal)
    )
    return {
        "recall": Fraction(sum(hits[:k]), relevant),
        "precision": Fraction(sum(hits[:k]), k),
        "hit": Fraction(any(hits[:k])),
        "mrr": Fraction(1, hits.index(True) + 1) if any(hits) else Fraction(0),
        "mrr@k": Fraction(1, hits.index(True) + 1) if any(hits[:k]) else Fraction(0),
        "map": sum(Fraction(sum(hits[: i + 1]), i + 1) for i, hit in enumerate(hits) if hit)
        / Fraction(relevant),
        "ndcg": Fraction(dcg / best),
    }


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6),
       st.lists(st.integers(0, 2), max_size=2), st.integers(1, 7))  # fmt: skip
def test_ties_give_the_mean_over_all_orders(found, missed, k):
    """``found`` are (score, gain) of documents, ``missed`` gains of those that the search lacks."""
    gains = {f"d{i}": gain for i, (_, gain) in enumerate(found)}
    gains |= {f"m{i}": gain for i, gain in enumerate(missed)}
    assume(any(gains.values()))
    scores = {f"d{i}": float(score) for i, (score, _) in enumerate(found)}
    groups = [[gain for score, gain in found if score == tied] for tied in (2, 1, 0)]
    orders = [sum(map(list, order), []) for order in product(*map(permutations, groups))]
    relevant, ideal = sum(g > 0 for g in gains.values()), sorted(gains.values(), reverse=True)
    each = [in_order(order, relevant, ideal, k) for order in orders]
    expected = {name: float(sum(one[name] for one in each) / len(each)) for name in each[0]}
    assert expected == pytest.approx({
        "recall": recall_at_k(gains, scores, k),
        "precision": precision_at_k(gains, scores, k),
        "hit": hit_at_k(gains, scores, k),
        "mrr": reciprocal_rank(gains, scores),
        "mrr@k": reciprocal_rank(gains, scores, k),
        "map": average_precision(gains, scores),
        "ndcg": ndcg_at_k(gains, scores, k),
    })  # fmt: skip


QUERY = st.tuples(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), min_size=1),
    st.permutations("abcdefgh"),
    st.integers(1, 8),
).filter(lambda query: any(query[0].values()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(QUERY, min_size=1, max_size=4), st.integers(1, 9))
def test_without_ties_they_are_those_of_trec_eval(queries, k):
    """The mean over queries of pytrec_eval's measures, with gains of several sizes."""
    import pytrec_eval

    qrels = {f"q{i}": gains for i, (gains, _, _) in enumerate(queries)}
    results = {f"q{i}": ranked(*order[:n]) for i, (_, order, n) in enumerate(queries)}
    theirs = {"recall": f"recall_{k}", "hit": f"success_{k}", "precision": f"P_{k}",
              "ndcg": f"ndcg_cut_{k}", "mrr": "recip_rank", "map": "map"}  # fmt: skip
    asked = {".".join(name.rsplit("_", 1)) if name.endswith(f"_{k}") else name
             for name in theirs.values()}  # fmt: skip
    each = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(results)
    ours = evaluate_retrieval(qrels, results, k)
    for name, value in ours.items():
        expected = [one[theirs[name.split("@")[0]]] for one in each.values()]
        assert value == pytest.approx(sum(expected) / len(queries)), name
    assert set(ours) == {f"recall@{k}", f"hit@{k}", f"precision@{k}", f"ndcg@{k}", "mrr", "map"}


def test_a_tie_is_broken_by_name_there_and_not_here():
    """A control of the comparison above, and why it has no ties: trec_eval puts b before a."""
    import pytrec_eval

    qrels, results = {"q": {"b": 1}}, {"q": {"a": 0.5, "b": 0.5}}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(results)
    assert theirs["q"]["recip_rank"] == 1
    assert evaluate_retrieval(qrels, results, 1)["mrr"] == 0.75


def test_a_query_without_results_counts_and_one_without_gains_does_not():
    qrels = {"q": {"a": 1}, "lost": {"a": 1}}
    results = {"q": ranked("a"), "unasked": ranked("a")}
    assert set(evaluate_retrieval(qrels, results, 1).values()) == {0.5}


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "scores", "k", "message"),
    [
        ({}, {"a": 1.0}, 1, "No document is relevant"),
        ({"a": 0}, {"a": 1.0}, 1, "No document is relevant"),
        ({"a": -1, "b": 1}, {}, 1, "Gains must be finite and 0 or more"),
        ({"a": math.nan, "b": 1}, {}, 1, "Gains must be finite"),
        ({"a": math.inf}, {}, 1, "Gains must be finite"),
        ({"a": 1}, {"a": 1.0, "b": math.nan}, 1, "A score is NaN"),
        ({"a": 1}, {"a": 1.0}, 0, "k of 1 or more, got 0"),
    ],
)
@pytest.mark.parametrize("measure", AT_K)
def test_what_cannot_be_measured_is_told(measure, gains, scores, k, message):
    with pytest.raises(ValueError, match=message):
        measure(gains, scores, k)


def test_an_evaluation_of_nothing_is_told():
    with pytest.raises(ValueError, match="no queries to average over"):
        evaluate_retrieval({}, {}, 1)
