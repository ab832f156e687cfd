"""The study of chapter 9's own run: what it learns from, and checks that a fault fails."""

import math

import pytest

from course_lib import plotting, ppo
from course_lib.studies import load, ppo_kl, ppo_live

SEED = 17


def outside(measure, value):
    low, high = load("ppo_live").interval_for_a_new_seed("live", measure)
    return not low <= value <= high


def test_control_a_turned_sign_of_the_advantage_fails_the_check(monkeypatch):
    real = ppo.policy_loss
    monkeypatch.setattr(ppo, "policy_loss", lambda new, old, A, eps: real(new, old, -A, eps))
    assert outside("truth", ppo_live.run({}, SEED)["truth"])


def test_control_a_policy_that_learnt_nothing_fails_the_check():
    """As with a mask that keeps nothing: the replies stay what they were, in each of the runs."""
    start = load("ppo_live").of("live", "honest at the start")
    assert len(start) == 16 and all(outside("honest", value) for value in start)


def test_the_kl_of_the_start_is_none():
    assert set(load("ppo_live").of("live", "KL at the start").values) == {0.0}


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(ppo_live, "policy_of", None)
    results = load("ppo_live")
    assert plotting.show(ppo_live.draw(results), "points").alt
    live = {"truth": 1.0, "KL": 3.0}
    assert plotting.show(ppo_live.draw(results, live), "points and a star").alt


@pytest.mark.parametrize("end", ["", " at the start"])
@pytest.mark.parametrize("measure", ppo_kl.MEASURES)
def test_each_row_has_every_measure(measure, end):
    values = load("ppo_live").of("live", measure + end)
    assert len(values) == len(ppo_live.SEEDS) and all(map(math.isfinite, values))
