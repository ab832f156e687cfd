"""The study of GRPO on sums: what its settings share, and its formula by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from course_lib import plotting, reasoning
from course_lib.studies import grpo_sums, load, sums
from course_lib.world.verifiers import VERIFIERS


def test_every_size_of_group_sees_as_many_responses(monkeypatch):
    """96 an update, in one step; what differs is the size alone."""
    calls = []
    monkeypatch.setattr(sums, "start_of", lambda seed: torch.nn.Linear(1, 1))

    def noted(policy, tokenizer, score, seed, *, settings, groups, **how):
        calls.append((groups * settings.group_size, settings.minibatch_size, how))
        return policy, [], []

    monkeypatch.setattr(reasoning, "tune_by_grpo", noted)
    for size in grpo_sums.SIZES:
        grpo_sums.tuned(3, group_size=size)
    assert calls == [calls[0]] * 4 and calls[0][:2] == (96, 96)
    assert grpo_sums.PPO.minibatch_size == 96 and grpo_sums.PPO.epochs == 1


def test_the_verifier_of_a_setting_is_the_one_that_scores(monkeypatch):
    seen = []
    monkeypatch.setattr(sums, "start_of", lambda seed: None)
    monkeypatch.setattr(reasoning, "scorer", lambda verifier, tokenizer: seen.append(verifier))
    monkeypatch.setattr(reasoning, "tune_by_grpo", lambda *given, **how: (None, [], []))
    for setting in ("rate 1e-3", "sloppy", "answer and format"):
        grpo_sums.tuned(0, **grpo_sums.GRID[setting])
    assert seen == [VERIFIERS[name] for name in ("exact answer", "sloppy", "both")]


def test_the_share_of_dead_groups_and_the_formula_by_hand(monkeypatch):
    """Two problems, 2 · 16 responses each. Of the first every second one is right, so every group
    of two is alive; of the second all are. Dead: 0 and 1, so 1/2 for every size.

    The formula from the first 16: 8 of 16 right. Of all pairs C(16, 2) = 120, 28 are both right and
    28 both wrong: 56/120; with the 1 of the other problem (56/120 + 1) / 2 = .7333. The mean p is
    .75, and .75² + .25² = .625.
    """
    monkeypatch.setattr(sums, "start_of", lambda seed: None)
    asked = [SimpleNamespace(answer=1), SimpleNamespace(answer=2)]
    monkeypatch.setattr(sums, "held_out", lambda *given: asked)
    texts = [[" The answer is 1.", " The answer is 7."] * 16, [" The answer is 2."] * 32]
    monkeypatch.setattr(reasoning, "sample_texts", lambda *given, **how: texts)
    found = grpo_sums.dead_groups_of(0, count=2)
    assert [found[f"dead {size}"] for size in grpo_sums.SIZES] == [0.5] * 4
    assert found["own p 2"] == pytest.approx((56 / 120 + 1) / 2)
    assert found["own p 16"] == pytest.approx(0.5) and found["p"] == 0.75
    assert found["mean p 2"] == pytest.approx(0.625)


def test_what_is_noted_of_a_run():
    """The mean of the last four scores: (.4 + .6 + .8 + 1) / 4."""
    history = [{"score": s, "dead": 0.5, "length": 30.0, "entropy": 0.1, "kept": 12}
               for s in (0.0, 0.4, 0.6, 0.8, 1.0)]  # fmt: skip
    found = grpo_sums.noted(history)
    assert found["late score"] == pytest.approx(0.7)
    assert found["score 2"] == 0.4 and found["length 5"] == 30 and "kept 1" not in found


def test_nats_are_those_of_the_worked_solution(monkeypatch):
    """A problem of one step, and logps of -3 for its n tokens: 3 / n, the end token counted."""
    asked, tokenizer = sums.held_out(0, 2, 1), grpo_sums.shipped("base")[1]
    monkeypatch.setattr(sums, "held_out", lambda *given: asked)
    seen = []
    monkeypatch.setattr(sums, "response_logps",
                        lambda *given: seen.append(given) or torch.tensor([-3.0]))  # fmt: skip
    got = sums.nats(None, 0)
    (_, (prompt,), (answer,)) = seen[0]
    text = f" {asked[0].steps} The answer is {asked[0].answer}."
    assert tokenizer.decode(answer[:-1]) == text and answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(prompt).endswith(f"What is {asked[0].expression}?<|assistant|>")
    assert got == pytest.approx(3 / len(answer))


def test_written_tells_a_right_answer_from_sound_steps(monkeypatch):
    """Sound, right behind a wrong step, wrong: shares 2/3, 1/3, and all three have the form."""
    asked = sums.held_out(0, 2, 3)
    a, b, c = asked
    texts = [f" {a.steps} The answer is {a.answer}.", f" 1 + 1 = 3. The answer is {b.answer}.",
             f" {c.steps} The answer is {c.answer + 1}."]  # fmt: skip
    monkeypatch.setattr(sums, "held_out", lambda *given: asked)
    monkeypatch.setattr(sums, "complete", lambda *given, **how: texts)
    found = sums.written(None, 0)
    assert found["answer"] == pytest.approx(2 / 3) and found["sound"] == pytest.approx(1 / 3)
    assert found["form"] == 1


@pytest.mark.parametrize("draw", [grpo_sums.draw, grpo_sums.draw_course, grpo_sums.draw_dead,
                                  grpo_sums.draw_careless, grpo_sums.draw_passes])  # fmt: skip
def test_the_figures_are_drawn_from_stored_results_alone(monkeypatch, draw):
    monkeypatch.setattr(sums, "start_of", None)
    assert plotting.show(draw(load("grpo_sums")), "panels").alt


def test_scores_are_drawn_for_the_settings_named():
    figure = grpo_sums.draw_scores(load("grpo_sums"), "Scores", [{"main": "a", "ppo": "b"}])
    assert plotting.show(figure, "lines").alt


@pytest.mark.parametrize("setting", grpo_sums.GRID)
def test_each_setting_has_every_measure(setting):
    results = load("grpo_sums")
    names = {"groups": ["p", *(f"dead {size}" for size in grpo_sums.SIZES)],
             "main": ["pass@16 of 8 after 40", "accuracy as corpus after 40"],
             "beyond": ["pass@16 of 8 after 20"]}.get(setting, [])  # fmt: skip
    if setting != "groups":
        names += ["late score", "nats", "answer", "sound", "form", "characters", "score 1",
                  "length 20"]
    for name in names:
        values = results.of(setting, name)
        assert len(values) == len(grpo_sums.SEEDS) and all(map(math.isfinite, values))
