"""The study of DPO on a policy that can be counted: its pairs, IPO's optimum, faults that fail."""

import math

import pytest
import torch
from scipy.stats import binom

from course_lib import plotting
from course_lib.enumeration import kl_divergence, policy_distribution
from course_lib.studies import dpo_toy, load, ppo_toy

SEED = 9
MEASURES = ("KL to optimum", "KL at the start", "moved")


def outside(measure, value):
    low, high = load("dpo_toy").interval_for_a_new_seed("fresh, beta 1", measure)
    return not low <= value <= high


def within(count: int, n: int, p: float) -> bool:
    """Whether a count lies where a binomial one does but once in a million."""
    return binom.ppf(5e-7, n, p) <= count <= binom.isf(5e-7, n, p)


def test_pairs_are_preferred_as_bradley_and_terry_say():
    """Three responses with .5, .3, .2 and scores 0, 2, 2 - log 3. Two different ones: .62 of all
    draws, so {0, 1} has 2 · .5 · .3 / .62 = .484 of the pairs and {1, 2} .194. Of 1 and 2 the first
    wins with 3/4, of 0 and 1 the second with σ(2) = .881; the odds the wrong way round, or of the
    probabilities, are others."""
    probs = torch.tensor([0.5, 0.3, 0.2]).double()
    scores, n = torch.tensor([0.0, 2.0, 2.0 - math.log(3)]), 20_000
    pairs = dpo_toy.draw_pairs(probs, scores, n, torch.Generator().manual_seed(0)).tolist()
    assert len(pairs) == n and all(a != b for a, b in pairs)
    one, two = (sum({a, b} == kind for a, b in pairs) for kind in ({0, 1}, {1, 2}))
    assert within(one, n, 0.3 / 0.62) and within(two, n, 0.12 / 0.62)
    assert within(pairs.count([1, 0]), one, 0.8808) and within(pairs.count([1, 2]), two, 0.75)
    sure = dpo_toy.draw_pairs(probs, scores, n, torch.Generator().manual_seed(0), True).tolist()
    assert {tuple(pair) for pair in sure} == {(1, 0), (2, 0), (1, 2)}


def test_as_many_pairs_as_asked_for_where_most_draws_are_equal():
    probs = torch.tensor([0.99, 0.01]).double()
    pairs = dpo_toy.draw_pairs(probs, torch.zeros(2), 50, torch.Generator().manual_seed(0))
    assert pairs.shape == (50, 2) and (pairs.sum(1) == 1).all()


def test_the_optimum_of_ipo_is_tilted_by_wins():
    """Probabilities .5, .3, .2 and scores 1, 5, 3, β = .5: they win against the reference with
    .25, .5 + .2 + .15 = .85 and .5 + .1 = .6, so the odds are .5 e^.5 : .3 e^1.7 : .2 e^1.2. Scores
    themselves (e^2 : e^10 : e^6) would be another answer."""
    probs, scores = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1.0, 5.0, 3.0])
    want = probs * torch.tensor([0.5, 1.7, 1.2]).double().exp()
    setting = {"beta": 0.5, "loss_type": "ipo_sum"}
    torch.testing.assert_close(dpo_toy.optimum_of(setting, probs, scores), want / want.sum())
    want = probs * torch.tensor([2.0, 10.0, 6.0]).double().exp()
    torch.testing.assert_close(dpo_toy.optimum_of({"beta": 0.5}, probs, scores), want / want.sum())


def test_that_optimum_is_the_minimum_of_ipos_expected_loss():
    """Least squares over all pairs of the reference, where the better one always wins: the normal
    equations, solved by ``lstsq`` on the 31 · 30 pairs, give the same distribution."""
    probs = policy_distribution(ppo_toy.reference(1), ppo_toy.PROMPT, ppo_toy.ALL)
    scores, n = ppo_toy.scores_of(1), len(ppo_toy.ALL)
    rows, aims = [], []
    for i in range(n):
        for j in range(n):
            if scores[i] > scores[j]:
                row = torch.zeros(n).double()
                row[i], row[j] = 1, -1
                weight = (probs[i] * probs[j]).sqrt()
                rows.append(weight * row)
                aims.append(weight / (2 * 0.5))
    lead = torch.linalg.lstsq(torch.stack(rows), torch.stack(aims)[:, None], driver="gelsd")
    found = (probs.log() + lead.solution[:, 0]).softmax(0)
    setting = {"beta": 0.5, "loss_type": "ipo_sum"}
    assert kl_divergence(found, dpo_toy.optimum_of(setting, probs, scores)) < 1e-9


def test_the_loss_of_a_sample_by_hand():
    """Policy .8, .2 against an even reference: the lead is log 4. With β = 1 the pair (0, 1) costs
    log 1.25, the pair (1, 0) log 5."""
    probs, ref = torch.tensor([0.8, 0.2]).double(), torch.tensor([0.5, 0.5]).double()
    pairs = torch.tensor([[0, 1], [1, 0]])
    want = (math.log(1.25) + math.log(5)) / 2
    assert dpo_toy.sample_loss(probs, ref, pairs, 1.0) == pytest.approx(want)
    assert dpo_toy.sample_loss(ref, ref, pairs, 1.0) == pytest.approx(math.log(2))


def test_control_preferences_the_wrong_way_round_fail_the_check(monkeypatch):
    real = dpo_toy.draw_pairs
    monkeypatch.setattr(dpo_toy, "draw_pairs", lambda *given: real(*given).flip(1))
    measures = dpo_toy.run(dpo_toy.GRID["fresh, beta 1"], SEED)
    assert outside("KL to optimum", measures["KL to optimum"])


def test_control_another_beta_in_the_loss_fails_the_check(monkeypatch):
    real = dpo_toy.pair_loss
    monkeypatch.setattr(dpo_toy, "pair_loss", lambda beta, **how: real(2 * beta, **how))
    measures = dpo_toy.run(dpo_toy.GRID["fresh, beta 1"], SEED)
    assert outside("KL to optimum", measures["KL to optimum"])


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(ppo_toy, "reference", None)
    assert plotting.show(dpo_toy.draw(load("dpo_toy")), "points").alt


@pytest.mark.parametrize("setting", dpo_toy.GRID)
def test_each_setting_has_every_measure(setting):
    extra = ("below the optimum",) if "count" in dpo_toy.GRID[setting] else ()
    for measure in MEASURES + extra:
        assert len(load("dpo_toy").of(setting, measure)) == len(dpo_toy.SEEDS)
