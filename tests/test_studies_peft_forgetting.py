"""The study of forgetting at equal accuracy: where it stops, and what it measures there."""

import pytest
import torch
from torch import nn

from course_lib import plotting
from course_lib.studies import codes, load, peft_forgetting, peft_methods, tuning

CHECKED = "full, rate 0.0003"


def test_abilities_are_measured_where_the_task_is_learnt(monkeypatch):
    """Accuracies .2, .6, .95, .99 after 10, 20, 30, 40 steps: measured once, after 30."""
    course, asked = iter((0.2, 0.6, 0.95, 0.99)), []
    monkeypatch.setattr(codes, "correct", lambda *given: next(course))
    monkeypatch.setattr(peft_forgetting, "forgotten", lambda model, tok, seed: (
        asked.append(seed) or {"kept": 0.5}))  # fmt: skip

    def train(model, stream, loss, *, evaluate, evaluate_every, **how):
        for step in (10, 20, 30, 40):
            assert step % evaluate_every == 0
            evaluate(model, step)

    monkeypatch.setattr(peft_forgetting, "train", train)
    found = peft_forgetting.run({"method": "LoRA r=1", "lr": 1e-3}, 3)
    assert found == {"correct": 0.95, "reached": 30, "kept": 0.5} and asked == [3]


def test_a_method_that_never_learns_is_measured_at_the_end(monkeypatch):
    monkeypatch.setattr(codes, "correct", lambda *given: 0.5)
    monkeypatch.setattr(peft_forgetting, "forgotten", lambda *given: {"kept": 0.9})
    steps = (peft_forgetting.EVERY, peft_forgetting.STEPS)
    monkeypatch.setattr(peft_forgetting, "train", lambda model, *given, evaluate, **how: [
        evaluate(model, step) for step in steps])  # fmt: skip
    found = peft_forgetting.run({"method": "full", "lr": 1e-3}, 3)
    assert found == {"correct": 0.5, "reached": peft_forgetting.STEPS, "kept": 0.9}


def test_kept_is_the_mean_of_six_abilities(monkeypatch):
    table = dict(zip(tuning.ABILITIES, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))) | {"perplexity": 3.0}
    monkeypatch.setattr(tuning, "abilities", lambda *given: table)
    found = peft_forgetting.forgotten(nn.Linear(1, 1), None, 0)
    assert found["kept"] == pytest.approx(0.5) and found["perplexity"] == 3.0


def test_the_methods_and_best_rates_are_those_of_the_other_study():
    for method, rates in peft_forgetting.RATES.items():
        assert set(rates) <= set(peft_methods.METHODS[method][1])


@pytest.mark.parametrize("fault", ["rate × 10", "random weights"])
def test_control_a_run_that_forgets_all_fails_the_check(fault):
    setting = peft_forgetting.GRID[CHECKED]
    low, high = load("peft_forgetting").interval_for_a_new_seed(CHECKED, "kept")
    if fault == "rate × 10":
        kept = peft_forgetting.run(setting | {"lr": 10 * setting["lr"]}, 9)["kept"]
    else:
        start, tokenizer = tuning.shipped("instruct")
        model = type(start)(start.config, torch.Generator().manual_seed(0)).eval()
        kept = peft_forgetting.forgotten(model, tokenizer, 9)["kept"]
    assert not low <= kept <= high


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(peft_forgetting, "shipped", None)
    assert plotting.show(peft_forgetting.draw(load("peft_forgetting")), "points").alt


@pytest.mark.parametrize("setting", peft_forgetting.GRID)
def test_each_setting_has_every_measure(setting):
    names = ("kept", "perplexity", *tuning.ABILITIES)
    for name in names if setting == "start" else (*names, "correct", "reached"):
        results = load("peft_forgetting").of(setting, name)
        assert len(results) == len(peft_forgetting.SEEDS)
