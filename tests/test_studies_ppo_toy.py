"""The study of PPO on a policy that can be counted: best-of-n by hand, faults fail its check."""

import itertools
import math

import pytest
import torch

from course_lib import plotting, ppo, ppo_rollouts
from course_lib.enumeration import kl_divergence, policy_distribution
from course_lib.studies import load, ppo_toy

SEED = 9


def outside(measure, value):
    low, high = load("ppo_toy").interval_for_a_new_seed("beta 0.5", measure)
    return not low <= value <= high


def test_the_best_of_n_is_that_of_all_tuples():
    """Three responses with .5, .3, .2 and scores 0, 2, 1: all 27 triples, each with its product;
    the best of a triple gets it. Of three draws none is the second with .7³ = .343."""
    probs, scores = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.0, 2.0, 1.0])
    want = torch.zeros(3).double()
    for triple in itertools.product(range(3), repeat=3):
        want[max(triple, key=scores.tolist().__getitem__)] += probs[list(triple)].prod()
    got = ppo_toy.best_of_n(probs, scores, 3)
    torch.testing.assert_close(got, want)
    assert got[1].item() == pytest.approx(1 - 0.343)
    assert got[0].item() == pytest.approx(0.125)


def test_the_best_of_one_is_the_policy_and_the_bound_holds():
    """log n - (n - 1) / n bounds the KL of every reference, and is reached where all is fine."""
    for seed in range(3):
        ref = policy_distribution(ppo_toy.reference(seed), ppo_toy.PROMPT, ppo_toy.ALL)
        scores = ppo_toy.scores_of(seed)
        torch.testing.assert_close(ppo_toy.best_of_n(ref, scores, 1), ref)
        for n in (2, 8, 100):
            kl = kl_divergence(ppo_toy.best_of_n(ref, scores, n), ref)
            assert 0 < kl < math.log(n) - (n - 1) / n
    fine = torch.full((50_000,), 1 / 50_000, dtype=torch.float64)
    kl = kl_divergence(ppo_toy.best_of_n(fine, torch.arange(50_000.0), 8), fine)
    assert kl == pytest.approx(math.log(8) - 7 / 8, abs=1e-3)


def test_scores_have_no_ties():
    for seed in (*ppo_toy.SEEDS, 8, 9):
        assert len(set(ppo_toy.scores_of(seed).tolist())) == len(ppo_toy.ALL) == 31


def test_control_a_turned_sign_of_the_advantage_fails_the_check(monkeypatch):
    real = ppo.policy_loss
    monkeypatch.setattr(ppo, "policy_loss", lambda new, old, A, eps: real(new, old, -A, eps))
    measures = ppo_toy.run(ppo_toy.GRID["beta 0.5"], SEED)
    assert outside("KL to optimum", measures["KL to optimum"]) and measures["gain"] < 0


def test_control_rewards_without_the_kl_fail_the_check(monkeypatch):
    """The score alone has another optimum: all probability on the best response."""
    real = ppo_rollouts.per_token_rewards
    monkeypatch.setattr(ppo_rollouts, "per_token_rewards",
                        lambda *given: real(*given[:4], kl_coef=0.0))  # fmt: skip
    measures = ppo_toy.run(ppo_toy.GRID["beta 0.5"], SEED)
    assert outside("KL to optimum", measures["KL to optimum"])


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(ppo_toy, "reference", None)
    assert plotting.show(ppo_toy.draw(load("ppo_toy")), "points").alt


@pytest.mark.parametrize("setting", ppo_toy.GRID)
def test_each_setting_has_every_measure(setting):
    for measure in ("KL to optimum", "KL at the start", "gain"):
        assert len(load("ppo_toy").of(setting, measure)) == len(ppo_toy.SEEDS)
