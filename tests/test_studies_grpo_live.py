"""The study of chapter 11's own run: where it begins, and checks that a fault fails."""

import math

import pytest

from course_lib import grpo_rollouts, plotting
from course_lib.studies import grpo_live, grpo_sums, load, sums

SEED = 17


def outside(measure, value):
    low, high = load("grpo_live").interval_for_a_new_seed("live", measure)
    return not low <= value <= high


def test_control_a_turned_sign_of_the_advantage_fails_the_check(monkeypatch):
    """A third of the run is enough to see it go the wrong way."""
    real = grpo_rollouts.group_advantages
    monkeypatch.setattr(grpo_rollouts, "group_advantages", lambda *given: -real(*given))
    policy, _ = grpo_sums.tuned(SEED, **grpo_live.GRID["live"] | {"updates": 8})
    assert outside("accuracy 5", sums.accuracies(policy, SEED, (5,))["accuracy 5"])


def test_control_a_run_that_learnt_nothing_fails_the_check():
    """As with a mask that keeps nothing: the policy stays what it was, in each of the runs."""
    start = load("grpo_live").of("live", "accuracy 5 at the start")
    assert len(start) == 16 and all(outside("accuracy 5", value) for value in start)


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(sums, "start_of", None)
    results = load("grpo_live")
    assert plotting.show(grpo_live.draw(results), "points").alt
    live = {"accuracy 5": 1.0, "accuracy 6": 0.5}
    assert plotting.show(grpo_live.draw(results, live), "points and a star").alt


@pytest.mark.parametrize("end", ["", " at the start"])
@pytest.mark.parametrize("measure", ["accuracy 5", "accuracy 6", "nats"])
def test_each_row_has_every_measure(measure, end):
    values = load("grpo_live").of("live", measure + end)
    assert len(values) == len(grpo_live.SEEDS) and all(map(math.isfinite, values))
