"""Strengths behind comparisons: the model by hand, the fit and its errors beside statsmodels."""

import doctest
import math

import pytest
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_record import Parity
from scipy.stats import binom, chi2
from torch.testing import assert_close

from course_lib import bradley_terry
from course_lib.bradley_terry import fit, simulate, win_probability


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(bradley_terry, extraglobs={"torch": torch})
    assert result.attempted == 4 and not result.failed


# --- the model ----------------------------------------------------------------------------------


def test_a_softmax_over_two_is_the_logistic_function_of_the_difference():
    """Strengths log 8, log 2, 0: odds of 8 to 2, 8 to 1, 2 to 1."""
    strengths = double([8.0, 2.0, 1.0]).log()
    found = win_probability(strengths)
    assert_close(found, double([[1 / 2, 8 / 10, 8 / 9], [2 / 10, 1 / 2, 2 / 3],
                                [1 / 9, 1 / 3, 1 / 2]]))  # fmt: skip
    for i in range(3):
        for j in range(3):
            assert_close(found[i, j], strengths[[i, j]].softmax(0)[0])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=6), st.floats(-50, 50))
def test_a_shift_of_all_strengths_changes_nothing(strengths, shift):
    strengths = double(strengths)
    found = win_probability(strengths)
    assert_close(win_probability(strengths + shift), found, atol=1e-12, rtol=0)
    assert_close(found + found.T, torch.ones_like(found))


def test_simulated_comparisons_add_up_and_are_drawn_from_the_generator():
    """Odds of 3 to 1 over 40,000 games: 30,000 wins, standard deviation √(40,000 · 3/16) = 87."""
    strengths = double([3.0, 1.0, 1.0]).log()
    wins = simulate(strengths, 40_000, generator(0))
    assert torch.equal(wins + wins.T, 40_000 * (1 - torch.eye(3, dtype=torch.float64)))
    assert abs(wins[0, 1] - 30_000) < 5 * 87 and abs(wins[1, 2] - 20_000) < 5 * 100
    assert torch.equal(wins, simulate(strengths, 40_000, generator(0)))
    assert not torch.equal(wins, simulate(strengths, 40_000, generator(1)))


# --- the fit ------------------------------------------------------------------------------------


def test_three_items_by_hand():
    """In a chain a - b - c each comparison tells its own difference: 20 to 10 between a and b, 40
    to 10 between b and c, so a - b = log 2 and b - c = log 4, and centred 4/3, 1/3 and -5/3 times
    log 2. The variances of the two are 1/20 + 1/10 = .15 and 1/40 + 1/10 = .125; a is (2 d + e)/3,
    so its variance is (4 · .15 + .125)/9 = .0806, that of b = (e - d)/3 is .0306, and that of
    c = -(d + 2 e)/3 is .0722. With c held at 0 instead they would be .275, .125 and 0."""
    found = fit(torch.tensor([[0, 20, 0], [10, 0, 40], [0, 10, 0]]))
    assert_close(found.strengths, double([4, 1, -5]) / 3 * math.log(2))
    variances = double([4 * 0.15 + 0.125, 0.15 + 0.125, 0.15 + 4 * 0.125]) / 9
    assert_close(found.standard_errors**2, variances)
    assert_close(found.covariance.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


@st.composite
def tournaments(draw) -> torch.Tensor:
    """Counts of 0 to 30 of up to seven items, with halves for ties, that have strengths: a ring in
    which each item won once against the next."""
    n = draw(st.integers(2, 7))
    counts = draw(st.lists(st.integers(0, 60), min_size=n * n, max_size=n * n))
    wins = double(counts).view(n, n) / 2
    wins[range(n), [(i + 1) % n for i in range(n)]] += 1
    return wins.fill_diagonal_(0)


def logistic_regression(wins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as a binomial regression on +1 of one item and -1 of the other, with the first item
    held at 0; then centred, with its covariance."""
    n = len(wins)
    pairs = [(i, j) for i in range(n) for j in range(i) if wins[i, j] + wins[j, i]]
    rows = torch.zeros(len(pairs), n, dtype=torch.float64)
    for row, (i, j) in zip(rows, pairs, strict=True):
        row[i], row[j] = 1, -1
    counts = torch.tensor([[wins[i, j], wins[j, i]] for i, j in pairs], dtype=torch.float64)
    model = sm.GLM(counts.numpy(), rows[:, 1:].numpy(), family=sm.families.Binomial())
    result = model.fit(tol=1e-13, maxiter=200)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    strengths, covariance = torch.zeros(n).double(), torch.zeros(n, n).double()
    strengths[1:] = torch.as_tensor(result.params)
    covariance[1:, 1:] = torch.as_tensor(result.cov_params())
    return centring @ strengths, (centring @ covariance @ centring).diagonal().sqrt()


@pytest.mark.filterwarnings("ignore:.*in scalar divide:RuntimeWarning")  # two items: no residual
def test_estimates_and_standard_errors_are_those_of_statsmodels():
    tried = []

    with Parity("Bradley-Terry strengths", "statsmodels.GLM", 1e-5) as parity:

        @settings(max_examples=60, deadline=None, derandomize=True)
        @given(tournaments())
        def compare(wins):
            parity.tried()
            found, (strengths, errors) = fit(wins), logistic_regression(wins)
            parity.compare(found.strengths, strengths)
            parity.compare(found.standard_errors, errors)
            tried.append(len(wins))

        compare()
    assert len(tried) >= 50 and len(set(tried)) > 3


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tournaments())
def test_each_item_wins_as_often_as_its_strength_says(wins):
    """Where the likelihood is highest, expected and counted wins are equal; strengths add up to 0,
    and other names for the items give them other names, nothing else."""
    found = fit(wins)
    expected = (wins + wins.T) * win_probability(found.strengths)
    assert_close(expected.sum(1), wins.sum(1), atol=1e-8, rtol=0)
    assert abs(found.strengths.sum()) < 1e-10
    order = torch.randperm(len(wins), generator=generator(len(wins)))
    again = fit(wins[order][:, order])
    assert_close(again.strengths, found.strengths[order], atol=1e-8, rtol=0)
    assert_close(again.standard_errors, found.standard_errors[order], atol=1e-8, rtol=0)


@pytest.mark.parametrize("counts", [(1e6, 1), (1, 1e6), (1e9, 1e9), (1e9, 1e-3), (1e-3, 1e-3)])
def test_the_fit_holds_at_any_size(counts):
    """Of two items the difference is the logarithm of the odds."""
    a, b = counts
    found = fit(double([[0, a], [b, 0]])).strengths
    assert (found[0] - found[1]).item() == pytest.approx(math.log(a / b), abs=1e-6)


def test_very_unequal_counts_do_not_throw_newton_off():
    """From 0, Newton's full steps run away here; with their halving each item wins as often as its
    strength says."""
    wins = double([[0, 0, 10, 0], [1e6, 0, 0, 1], [1e5, 1e6, 0, 0], [1e6, 10, 100, 0]])
    strengths = fit(wins).strengths
    expected = (wins + wins.T) * win_probability(strengths)
    assert_close(expected.sum(1), wins.sum(1), atol=1e-6, rtol=0)
    assert strengths.argsort().tolist() == [0, 1, 2, 3]


def test_ties_are_half_a_win_each():
    """Two wins, four ties and no loss are 4 to 2: log 2. Ties left out would have no strengths."""
    wins, ties = double([[0, 2], [0, 0]]), double([[0, 4], [4, 0]])
    found = fit(wins + ties / 2).strengths
    assert (found[0] - found[1]).item() == pytest.approx(math.log(2))


def test_rock_paper_scissors_have_equal_strengths():
    """Each beats one and loses to one, 9 to 1. A number for each cannot say so: all are 0, and
    every probability is 1/2 where 0.9 was counted."""
    wins = torch.tensor([[0, 9, 1], [1, 0, 9], [9, 1, 0]])
    found = fit(wins)
    assert_close(found.strengths, torch.zeros(3, dtype=torch.float64), atol=1e-10, rtol=0)
    assert_close(win_probability(found.strengths)[0, 1], double(0.5), atol=1e-10, rtol=0)


# --- standard errors ----------------------------------------------------------------------------

TRUE = [1.2, 0.4, 0.0, -0.3, -1.3]
TOURNAMENTS, GAMES = 400, 60


@pytest.fixture(scope="module")
def standardised() -> tuple[torch.Tensor, torch.Tensor]:
    """(estimate - truth) / standard error, (tournaments, items); and with a wrong standard error:
    that of an item whose opponents' strengths are known."""
    right, wrong, g = [], [], generator(0)
    for _ in range(TOURNAMENTS):
        wins = simulate(double(TRUE), GAMES, g)
        found = fit(wins)
        error, p = found.strengths - double(TRUE), win_probability(found.strengths)
        information = ((wins + wins.T) * p * p.T).sum(1)
        right.append(error / found.standard_errors)
        wrong.append(error * information.sqrt())
    return torch.stack(right), torch.stack(wrong)


CHANCE = 1e-3 / (3 * len(TRUE))
"""Of each check that it fails although the errors are right; a thousandth for all together."""


def coverage_is_right(z: torch.Tensor) -> bool:
    inside = int((z.abs() < 1.96).sum())
    low, high = binom.ppf([CHANCE / 2, 1 - CHANCE / 2], len(z), 0.95)
    return low <= inside <= high


def variance_is_right(z: torch.Tensor) -> bool:
    """Σ z² of independent standard normal numbers has the chi-squared distribution."""
    low, high = chi2.ppf([CHANCE / 2, 1 - CHANCE / 2], len(z))
    return low <= float((z**2).sum()) <= high


@pytest.mark.parametrize("item", range(len(TRUE)))
def test_strengths_are_recovered_within_their_standard_errors(standardised, item):
    """Of 400 simulated tournaments, item by item: the standardised errors have mean 0, variance 1,
    and 95 % lie within 1.96."""
    z = standardised[0][:, item]
    assert coverage_is_right(z) and variance_is_right(z)
    assert abs(z.mean()) < 4 / math.sqrt(TOURNAMENTS)


def test_standard_errors_as_if_the_others_were_known_are_seen_to_be_wrong(standardised):
    """For n equal items their squares are n²/(n - 1)² = 1.56 of what they should be."""
    z = standardised[1]
    assert sum(variance_is_right(column) for column in z.T) < 2


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wins", "message"),
    [
        ([[0.0]], "two items"),
        ([[0.0, 1.0]], "n, n"),
        ([0.0, 1.0], "n, n"),
        ([[0.0, -1.0], [2.0, 0.0]], "none negative"),
        ([[0.0, math.nan], [2.0, 0.0]], "finite"),
        ([[0.0, math.inf], [2.0, 0.0]], "finite"),
        ([[1.0, 1.0], [2.0, 0.0]], "diagonal"),
        ([[0.0, 1.0], [0.0, 0.0]], r"\[1\] never won against any of the items \[0\]"),
        ([[0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0]],
         r"\[2, 3\] never won against any of the items \[0, 1\]"),
        ([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], r"\[0, 1\] never won .*\[2, 3"),
    ],
)  # fmt: skip
def test_counts_without_strengths_are_told(wins, message):
    """One winner of all; two strong and two weak ones; two groups that never met."""
    with pytest.raises(ValueError, match=message):
        fit(torch.tensor(wins))


def test_a_chain_in_which_nobody_beats_everybody_has_strengths():
    """a beats b, b beats c, c beats a, and nothing else: connected over others, so no error."""
    assert_close(fit(torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]])).strengths,
                 torch.zeros(3, dtype=torch.float64), atol=1e-10, rtol=0)  # fmt: skip


def test_bad_strengths_and_tournaments_are_told():
    with pytest.raises(ValueError, match="finite"):
        win_probability(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match=r"\(n,\)"):
        win_probability(torch.zeros(2, 2))
    for strengths, games in ((torch.zeros(1), 3), (torch.zeros(2), 0), (torch.zeros(2, 2), 3)):
        with pytest.raises(ValueError, match="two items or more"):
            simulate(strengths, games)
