"""The study of DPO on the guests' questions: what it measures and what differs."""

import math

import pytest
import torch
from torch import nn

from course_lib import plotting, rlhf
from course_lib.rlhf import read_reply
from course_lib.studies import dpo_guests, guests, load, ppo_kl
from course_lib.studies.tuning import shipped
from course_lib.world.preferences import Question


def test_pairs_are_read_by_hand(monkeypatch):
    """Three replies A, B, C with log π -3, -5, -7 at the start and -4, -8, -7 now; pairs (A, B),
    (B, C), (A, C). Chosen now (-4 - 8 - 4) / 3, rejected (-8 - 7 - 7) / 3; log-ratios -1, -3, 0, so
    the margins are 2, -3, -1: one of three is right. Without the start all but (B, C) were."""
    _, tokenizer = shipped("instruct")
    a, b, c = (read_reply(tokenizer, Question("inn", "Oakby"), tokenizer(f" {text}")["input_ids"])
               for text in "ABC")  # fmt: skip
    start, policy = nn.Linear(1, 1), nn.Linear(1, 1)
    logps = {id(start): {id(a): -3.0, id(b): -5.0, id(c): -7.0},
             id(policy): {id(a): -4.0, id(b): -8.0, id(c): -7.0}}  # fmt: skip
    monkeypatch.setattr(guests, "policy_of", lambda seed: start)
    monkeypatch.setattr(guests, "held_out_rankings", lambda seed: [[(a, 0), (b, 1), (c, 2)]])
    monkeypatch.setattr(rlhf, "reply_logps", lambda model, replies, pad: torch.tensor(
        [logps[id(model)][id(reply)] for reply in replies]))  # fmt: skip
    dpo_guests.held_out_pairs.cache_clear()
    found = dpo_guests.read_pairs(policy, dpo_guests.held_out_pairs(0))
    assert found["chosen"] == pytest.approx(-16 / 3, abs=1e-4)
    assert found["rejected"] == pytest.approx(-22 / 3, abs=1e-4)
    assert found["margin"] == pytest.approx(-2 / 3, abs=1e-4)
    assert found["accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    at_start = dpo_guests.read_pairs(start, dpo_guests.held_out_pairs(0))
    assert at_start["margin"] == 0 and at_start["accuracy"] == 0.5
    dpo_guests.held_out_pairs.cache_clear()


@pytest.fixture
def noted(monkeypatch):
    """Calls of ``tune_by_dpo``, each of which returns the next of three modules."""
    calls, models = [], [nn.Linear(1, 1) for _ in range(4)]
    monkeypatch.setattr(guests, "policy_of", lambda seed: models[0])
    monkeypatch.setattr(guests, "rankings_of", lambda seed, count: [("ranking", seed)] * count)
    monkeypatch.setattr(dpo_guests, "measured", lambda policy, *given: {"last": policy})
    logps = {"chosen": 1, "rejected": 2}
    monkeypatch.setattr(dpo_guests, "read_pairs", lambda policy, pairs: logps)
    monkeypatch.setattr(dpo_guests, "held_out_pairs", lambda seed: None)
    monkeypatch.setattr(rlhf, "collect_rankings", lambda policy, tokenizer, people, count, seed: [
        (policy, seed)] * count)  # fmt: skip

    def tune(policy, tokenizer, rankings, seed, **how):
        calls.append((policy, rankings, seed, how))
        how.pop("watch")(policy, dpo_guests.STEPS // 3)
        return models[len(calls)], []

    monkeypatch.setattr(rlhf, "tune_by_dpo", tune)
    return calls, models


def test_all_betas_are_run_alike_but_for_beta(noted):
    calls, models = noted
    for beta in dpo_guests.BETAS[:3]:
        measures = dpo_guests.run(dpo_guests.GRID[f"beta {beta:g}"], 3)
        assert measures[f"chosen {dpo_guests.STEPS // 3}"] == 1
    assert [call[3].pop("beta") for call in calls] == list(dpo_guests.BETAS[:3])
    assert all(call == calls[0] for call in calls)
    policy, rankings, seed, how = calls[0]
    assert policy is how["reference"] is models[0] and seed == 3
    assert len(rankings) == dpo_guests.RANKINGS == ppo_kl.RANKINGS


def test_on_policy_has_as_many_labels_and_steps_from_the_policy_as_it_is(noted):
    """Three rounds: the first third of the usual rankings, then replies of the policy that the
    round before gave; the reference stays the start; β and the number of steps are those of
    ``MAIN``."""
    calls, models = noted
    assert dpo_guests.run(dpo_guests.GRID["on-policy"], 3)["last"] is models[3]
    assert [call[0] for call in calls] == models[:3]
    assert all(call[3]["reference"] is models[0] for call in calls)
    assert sum(len(call[1]) for call in calls) == dpo_guests.RANKINGS
    assert sum(call[3]["steps"] for call in calls) == dpo_guests.STEPS
    assert {call[3]["beta"] for call in calls} == {dpo_guests.GRID[dpo_guests.MAIN]["beta"]}
    assert calls[0][1][0] == ("ranking", 3)
    assert [call[1][0][0] for call in calls[1:]] == models[1:3]
    assert len({call[1][0][1] for call in calls}) == 3  # three sets of questions


def test_the_small_run_learns_from_the_rankings_of_ppos(noted):
    calls, _ = noted
    dpo_guests.run(dpo_guests.GRID["small"], 3)
    assert len(calls[0][1]) == ppo_kl.SMALL_RANKINGS and calls[0][3]["steps"] == (
        dpo_guests.SMALL_STEPS
    )


def test_the_small_runs_of_dpo_and_ppo_are_as_much_work():
    """Rows learnt: DPO's are 2 a pair; PPO's are 16 a step of the reward model, and those of policy
    and critic in each epoch."""
    learnt = 2 * dpo_guests.SMALL_STEPS * dpo_guests.BATCH
    replies = ppo_kl.SMALL_UPDATES * ppo_kl.SMALL_RESPONSES
    theirs = 16 * ppo_kl.SMALL_STEPS + 2 * replies * rlhf.ppo_settings().epochs
    assert 0.75 < learnt / theirs <= 1


def test_the_figures_are_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(guests, "policy_of", None)
    results = load("dpo_guests")
    for fig in (dpo_guests.draw(results), dpo_guests.draw_pairs(results),
                dpo_guests.draw_frontier(results, load("ppo_kl"))):  # fmt: skip
        assert plotting.show(fig, "panels").alt


@pytest.mark.parametrize("setting", dpo_guests.GRID)
def test_each_setting_has_every_measure(setting):
    results = load("dpo_guests")
    for measure in dpo_guests.MEASURES:
        values = results.of(setting, measure).values
        assert len(values) == len(dpo_guests.SEEDS) and all(map(math.isfinite, values))
    for step in (dpo_guests.STEPS // 3, 2 * dpo_guests.STEPS // 3):
        if setting in dpo_guests.betas(results):
            assert len(results.of(setting, f"chosen {step}")) == len(dpo_guests.SEEDS)


def test_the_start_is_the_start_of_ppos_study():
    """Both studies ask the same questions of the same policies."""
    mine = load("dpo_guests").of("start", "truth")
    theirs = load("ppo_kl").of("small", "truth 0")
    assert max(abs(v) for v in (mine - theirs).values) < 0.1
