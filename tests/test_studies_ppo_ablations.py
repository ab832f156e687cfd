"""The study of healthy and sick runs: the wrong mask by hand, and what it shows in a log."""

import copy
import math

import pytest
import torch

from course_lib import plotting
from course_lib.ppo import ppo_loss
from course_lib.ppo_rollouts import ActorCritic, PPORollouts
from course_lib.studies import guests, load, ppo_ablations, ppo_toy


def test_the_wrong_mask_counts_the_prompt_and_not_padding():
    """Left padding 1, prompt 5 6, response 7 0, and one padded column behind: labels of 6 7 0 (the
    5 stands behind padding, and nothing predicts it)."""
    batch = {"input_ids": torch.tensor([[1, 5, 6, 7, 0, 0]]),
             "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 0]]),
             "labels": torch.tensor([[-100, -100, -100, 7, 0, -100]]),
             "advantages": torch.zeros(1, 5)}  # fmt: skip
    wrong = ppo_ablations.prompt_counted(batch)
    assert wrong["labels"].tolist() == [[-100, -100, 6, 7, 0, -100]]
    assert wrong["response_mask"].tolist() == [[False, True, True, True, False]]
    assert wrong["advantages"] is batch["advantages"]
    assert batch["labels"].tolist() == [[-100, -100, -100, 7, 0, -100]]


def test_the_wrong_mask_shows_in_the_first_step():
    """Nothing was learnt yet, so the right ratio is 1. The prompt's second token, too, counts in
    the wrong one, with the old log-probability 0: its ratio is its own probability, below 1."""
    ref = ppo_toy.reference(0)
    settings = ppo_toy.settings_of(0.5)
    model = ActorCritic(copy.deepcopy(ref))
    score = ppo_toy.scorer_of(ppo_toy.scores_of(0))
    stream = PPORollouts(model, ref, [ppo_toy.PROMPT], score, settings, batch_size=256,
                         eos_token_id=0, generator=torch.Generator().manual_seed(0))  # fmt: skip
    batch = next(stream)
    right = ppo_loss(settings)(model, batch)[1]
    wrong = ppo_loss(settings)(model, ppo_ablations.prompt_counted(batch))[1]
    assert right["ratio"].item() == pytest.approx(1, abs=1e-4) and right["clipfrac"] == 0
    assert wrong["ratio"] < 0.8 and wrong["clipfrac"] > 0.3


def test_a_changed_stream_is_still_live():
    stream = ppo_ablations.Changed([{"a": 1}, {"a": 2}], lambda batch: {"a": -batch["a"]})
    assert stream.live and [batch["a"] for batch in stream] == [-1, -2]


def test_the_figures_are_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(guests, "policy_of", None)
    results = load("ppo_ablations")
    assert plotting.show(ppo_ablations.draw(results), "points").alt
    names = {"score": "score", "ratio": "ratio"}
    assert plotting.show(ppo_ablations.draw_logs(results, "Logs", names), "lines").alt


@pytest.mark.parametrize("setting", ppo_ablations.GRID)
def test_each_setting_has_every_measure(setting):
    results = load("ppo_ablations")
    names = [f"{n} {u + 1}" for n in (*ppo_ablations.LOGGED, *ppo_ablations.KEPT)
             for u in range(ppo_ablations.UPDATES)]  # fmt: skip
    for name in (*names, *ppo_ablations.AT_THE_END, "gain"):
        values = results.of(setting, name)
        assert len(values) == len(ppo_ablations.SEEDS) and all(map(math.isfinite, values))
