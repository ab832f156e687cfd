"""The study of the KL's weight: its curves, its best-of-n, what differs between its runs."""

import math

import pytest
import torch
from torch import nn

from course_lib import plotting, rlhf
from course_lib.rlhf import read_reply
from course_lib.studies import guests, load, ppo_kl
from course_lib.studies.stored import from_rows
from course_lib.studies.tuning import shipped
from course_lib.world.preferences import Question


def test_a_course_is_read_in_the_order_of_the_updates():
    """Means of two seeds: 1 and 3 -> 2, 5 and 7 -> 6; other measures do not count."""
    rows = [{"setting": "kl 0", "seed": s, "measures": {"truth 0": 1 + 2 * s, "proxy 0": 9,
                                                        "truth 10": 5 + 2 * s}}
            for s in range(2)]  # fmt: skip
    results = from_rows("made_up", rows, {})
    assert ppo_kl.course_of(results, "kl 0", "truth") == ([0, 10], [2, 6])
    assert ppo_kl.weights(from_rows("made_up", [*rows, {**rows[0], "setting": "small"}], {})) == [
        "kl 0"
    ]


def test_best_of_n_takes_the_best_of_each_question(monkeypatch):
    """Two questions with four replies each, scores = the number of letters: the best of two is the
    mean over four pairs, the best of four over two questions; KL log 4 - 3/4 = .636."""
    _, tokenizer = shipped("instruct")
    texts = ["A", "Abcd", "Ab", "Abc", "A", "A", "Abcde", "Ab"]
    replies = [read_reply(tokenizer, Question("inn", "Oakby"),
                          tokenizer(" " + text)["input_ids"]) for text in texts]  # fmt: skip
    monkeypatch.setattr(guests, "policy_of", lambda seed: None)
    monkeypatch.setattr(guests, "reward_model_of", lambda seed, *how: None)
    monkeypatch.setattr(rlhf, "ask_held_out", lambda *given: replies)
    monkeypatch.setattr(rlhf, "score_replies", lambda m, t, some: [float(len(texts[some.index(r)]))
                                                                   for r in some])  # fmt: skip
    found = ppo_kl.best_of(0, (1, 2, 4))
    assert found["proxy 1"] == pytest.approx(sum(map(len, texts)) / 8, abs=1e-4)
    assert found["proxy 2"] == (4 + 3 + 1 + 5) / 4 and found["proxy 4"] == 4.5
    assert found["KL 1"] == 0 and found["KL 4"] == pytest.approx(math.log(4) - 0.75, abs=1e-4)


def test_all_weights_are_run_alike_but_for_the_weight(monkeypatch):
    """Same policy, scores, critic and seed; what differs is ``kl_coef``."""
    calls = []
    model = nn.Linear(1, 1)
    monkeypatch.setattr(guests, "policy_of", lambda seed: model)
    monkeypatch.setattr(guests, "reward_model_of", lambda seed, *how: model)
    monkeypatch.setattr(ppo_kl, "measured", lambda *given: dict.fromkeys(ppo_kl.MEASURES, 0.0))
    monkeypatch.setattr(rlhf, "score_with", lambda *given: torch.zeros)

    def noted(policy, tokenizer, score, seed, *, settings, watch, **how):
        watch(policy, how["updates"])
        calls.append((settings.kl_coef, rlhf.ppo_settings(kl_coef=0.7) == rlhf.ppo_settings(
            **{**vars(settings), "kl_coef": 0.7}), policy, score, seed, how))  # fmt: skip

    monkeypatch.setattr(rlhf, "tune_by_ppo", noted)
    for weight in ppo_kl.WEIGHTS:
        ppo_kl.run(ppo_kl.GRID[f"kl {weight:g}"], 3)
    assert [call[0] for call in calls] == list(ppo_kl.WEIGHTS)
    assert all(call[1:] == calls[0][1:] for call in calls) and calls[0][1]


@pytest.mark.parametrize("draw", [ppo_kl.draw, ppo_kl.draw_frontier])
def test_the_figures_are_drawn_from_stored_results_alone(monkeypatch, draw):
    monkeypatch.setattr(guests, "policy_of", None)
    assert plotting.show(draw(load("ppo_kl")), "panels").alt


@pytest.mark.parametrize("setting", ppo_kl.GRID)
def test_each_setting_has_every_measure(setting):
    results = load("ppo_kl")
    for measure in ppo_kl.MEASURES:
        at, means = ppo_kl.course_of(results, setting, measure)
        assert len(at) == {"best of n": 6, "small": 2}.get(setting, 4)
        assert len(results.of(setting, f"{measure} {at[-1]}")) == len(ppo_kl.SEEDS)
        assert all(map(math.isfinite, means))
