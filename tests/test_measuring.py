"""From a completion to a figure: answers parsed, graded, counted, and the intervals by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.measuring import (
    grade,
    mean_interval,
    parse_answer,
    pass_at_k,
    prediction_interval,
    wilson,
)

steady = settings(max_examples=80, deadline=None, derandomize=True)


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" 15\nQ: 2", "15"),
        (" 12 + 3 = 15. 15 - 4 = 11. The answer is 11.\n", "11"),
        (" The answer is 3. No: The answer is 4.", "4"),
        (" 15\nThe answer is 3.", "15"),
        (" Oakby.", "Oakby"),
        (" dogs<|end|> noise", "dogs"),
        ("\n dogs", ""),
        ("", ""),
        (" The answer is", ""),
    ],
)
def test_parse_answer(completion, answer):
    assert parse_answer(completion) == answer


def test_chains_of_several_lines_and_other_marks():
    chain = "12 + 3 = 15.\nSo the answer: 15.\nGood."
    assert parse_answer(chain, mark="the answer:", stop=None) == "15"
    assert parse_answer("cat | dog", stop="|") == "cat"


@steady
@given(
    steps=st.text("0123456789+-=. ", max_size=20),
    answer=st.from_regex(r"[a-z0-9]([a-z0-9, ]{0,8}[a-z0-9])?", fullmatch=True),
    rest=st.text(max_size=10),
)
def test_the_answer_comes_back_from_any_chain(steps, answer, rest):
    assert parse_answer(f" {steps} The answer is {answer}.\n{rest}") == answer
    assert parse_answer(f" {answer}\n{rest}") == answer


# --- grading ------------------------------------------------------------------------------------


def test_exact_matches_are_counted_with_their_interval():
    """3 of 4 with z = 1.96, z² = 3.8416: centre (.75 + .4802) / 1.9604 = .62753, half-width
    1.96 / 1.9604 · √(.75 · .25 / 4 + (.49 / 2)²) = .99980 · √(.046875 + .060025) = .32689."""
    result = grade(["cat", "dogs", "5", "pear"], ["cat", "dog", "5", "pear"])
    assert result.hits == (True, False, True, True) and result.accuracy == 0.75
    assert result.interval.centre == pytest.approx(0.62753, abs=1e-5)
    assert result.interval.half_width == pytest.approx(0.32689, abs=1e-5)
    assert str(result) == "0.750 (95 %: 0.301 to 0.954, n = 4)"


@pytest.mark.parametrize(("predictions", "answers"), [([], []), (["a"], ["a", "b"])])
def test_predictions_and_answers_must_match_in_number(predictions, answers):
    with pytest.raises(ValueError, match=f"{len(predictions)} predictions for {len(answers)}"):
        grade(predictions, answers)


# --- intervals ----------------------------------------------------------------------------------


def test_wilson_by_hand():
    """z² = n = 4: (p + 1/2) / 2 ± 2/2 · √(p(1-p)/4 + 1/16). Nothing right: ¼ ± ¼. Half right:
    ½ ± √(1/8). All right: ¾ ± ¼."""
    for share, centre, half in ((0, 0.25, 0.25), (0.5, 0.5, math.sqrt(1 / 8)), (1, 0.75, 0.25)):
        interval = wilson(share, 4, z=2.0)
        assert interval.centre == pytest.approx(centre)
        assert interval.half_width == pytest.approx(half)


@steady
@given(items=st.integers(1, 1000), data=st.data(), z=st.floats(0.5, 4))
def test_the_ends_solve_the_equation_that_defines_them(items, data, z):
    """p is an end if the share seen lies z standard deviations of p from it (Wilson, 1927)."""
    share = data.draw(st.integers(0, items)) / items
    interval = wilson(share, items, z)
    assert 0 <= interval.low <= share + 1e-12 and share - 1e-12 <= interval.high <= 1
    for p in (interval.low, interval.high):
        assert (share - p) ** 2 == pytest.approx(z * z * p * (1 - p) / items, abs=1e-9)


@pytest.mark.parametrize(("share", "items"), [(0.5, 0), (1.5, 4), (-0.1, 4), (math.nan, 4)])
def test_a_share_of_nothing_is_refused(share, items):
    with pytest.raises(ValueError, match="at least one item"):
        wilson(share, items)


def test_the_interval_of_a_mean_by_hand():
    """0 and 2: mean 1, s = √((1 + 1) / 1) = √2, s / √n = 1. With one degree of freedom t is
    Cauchy's tan(π (p - ½)): tan(.495 π) = 63.657 at 99 %, tan(.45 π) = 6.3138 at 90 %. The normal
    quantile would give 2.576, and s over n instead of n - 1 45.01."""
    assert mean_interval([0, 2]) == pytest.approx((1, 1 - 63.6567, 1 + 63.6567), abs=1e-3)
    assert mean_interval([0, 2], 0.9) == pytest.approx((1, 1 - 6.31375, 1 + 6.31375), abs=1e-4)


def test_the_interval_of_a_ninth_of_its_kind_by_hand():
    """1, 2, 3: mean 2, s = √(2/2) = 1, t(2) at 99 % is √2 · .99 / √(1 - .99²) = 9.9248. The mean
    has 9.9248 / √3 = 5.7301; a new value 9.9248 · √(1 + 1/3) = 11.4602."""
    assert mean_interval([3, 1, 2]) == pytest.approx((2, 2 - 5.7301, 2 + 5.7301), abs=1e-3)
    low, high = prediction_interval([3, 1, 2], 0.99)
    assert (low, high) == pytest.approx((2 - 11.4602, 2 + 11.4602), abs=1e-3)


def test_the_prediction_of_a_new_run_by_hand():
    """0 and 2 again: 63.6567 · √2 · √(1 + 1/2) = 110.257."""
    low, high = prediction_interval([0, 2], 0.99)
    assert (low, high) == pytest.approx((1 - 110.2566, 1 + 110.2566), abs=1e-2)


def test_runs_that_all_agree_have_a_least_spread():
    """s = 0 is not believed below .1: 63.6567 · .1 · √1.5 = 7.7963; above it, it changes nothing,
    and the mean's own interval has none."""
    low, high = prediction_interval([1.0, 1.0], 0.99, least_spread=0.1)
    assert (low, high) == pytest.approx((1 - 7.7963, 1 + 7.7963), abs=1e-3)
    assert prediction_interval([1.0, 1.0], 0.99) == (1.0, 1.0)
    wide = prediction_interval([0, 2], 0.99)
    assert prediction_interval([0, 2], 0.99, least_spread=0.1) == wide
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_too_few_or_no_numbers_have_no_interval(values):
    for interval in (mean_interval, lambda v: prediction_interval(v, 0.99)):
        with pytest.raises(ValueError, match="two finite values or more"):
            interval(values)


@pytest.mark.parametrize("n", [2, 8])
def test_intervals_cover_as_often_as_they_say(n):
    """4,000 samples of n from N(0, 1): 90 % of the intervals hold the mean 0, and 90 % the next
    draw, ± 4 · √(.09 / 4000) = .019. With the normal quantile, 1.645, two values would cover
    2/π · atan(1.645) = .65, and eight .86."""
    generator = torch.Generator().manual_seed(n)
    draws = torch.randn(4_000, n + 1, generator=generator, dtype=torch.float64).tolist()
    means = [mean_interval(row[:n], 0.9) for row in draws]
    new = [prediction_interval(row[:n], 0.9) for row in draws]
    covered = sum(low <= 0 <= high for _, low, high in means) / len(draws)
    predicted = sum(low <= row[n] <= high for (low, high), row in zip(new, draws)) / len(draws)
    assert abs(covered - 0.9) < 0.019 and abs(predicted - 0.9) < 0.019


def test_pass_at_k_is_the_share_of_draws_that_have_a_right_one():
    """By all subsets: n 5, c 2, k 3: of 10 triples one has none of the two, so .9; the plug-in 1 -
    (1 - .4)³ would be .784."""
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([i < c for i in range(n)], k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)


def test_pass_at_k_of_many_samples():
    """Binomials of 10,000 overflow a float. 1 of 10,000, k 100: exactly .01. k 1: the share."""
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    assert pass_at_k(10_000, 3_000, 1) == pytest.approx(0.3)
    assert pass_at_k(10_000, 5_000, 5_000) == pytest.approx(1)
    assert pass_at_k(10_000, 0, 10_000) == 0 and pass_at_k(10, 1, 10) == 1


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_what_cannot_be(n, c, k):
    with pytest.raises(ValueError, match=rf"n={n} samples c={c} are right and k={k} are taken"):
        pass_at_k(n, c, k)
