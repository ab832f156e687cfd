"""The study of chapter 10's own run: what it learns from, and checks that a fault fails."""

import math

import pytest

from course_lib import plotting, rlhf
from course_lib.studies import dpo_guests, dpo_live, load, ppo_live

SEED = 17


def outside(measure, value):
    low, high = load("dpo_live").interval_for_a_new_seed("live", measure)
    return not low <= value <= high


def test_control_preferences_the_wrong_way_round_fail_the_check(monkeypatch):
    real = rlhf.preference_pairs
    monkeypatch.setattr(rlhf, "preference_pairs", lambda rankings: [
        pair._replace(chosen=pair.rejected, rejected=pair.chosen) for pair in real(rankings)
    ])  # fmt: skip
    assert outside("truth", dpo_live.run({}, SEED)["truth"])


def test_control_a_policy_that_learnt_nothing_fails_the_check():
    """The replies stay what they were, in every one of the runs."""
    start = load("dpo_live").of("live", "honest at the start")
    assert len(start) == 16 and all(outside("honest", value) for value in start)


def test_it_begins_where_ppos_run_begins():
    """The same policies are asked the same questions."""
    mine = load("dpo_live").of("live", "truth at the start")
    theirs = load("ppo_live").of("live", "truth at the start")
    assert max(abs(v) for v in (mine - theirs).values) < 0.1


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(ppo_live, "policy_of", None)
    assert plotting.show(dpo_live.draw(load("dpo_live")), "points").alt


@pytest.mark.parametrize("end", ["", " at the start"])
@pytest.mark.parametrize("measure", dpo_guests.MEASURES)
def test_each_row_has_every_measure(measure, end):
    values = load("dpo_live").of("live", measure + end)
    assert len(values) == len(dpo_live.SEEDS) and all(map(math.isfinite, values))
