"""The study of what has to be trained: its best rates, and checks that a fault fails."""

import math

import pytest

from course_lib import lora_layer, plotting
from course_lib.studies import codes, load, peft_methods
from course_lib.studies.stored import from_rows

SEED, CHECKED = 9, "LoRA r=8, rate 0.005"


def outside(value):
    low, high = load("peft_methods").interval_for_a_new_seed(CHECKED, "correct")
    return not low <= value <= high


def test_the_best_rate_is_that_of_the_highest_mean():
    """Means .5, .8 and .7; "LoRA r=1" is not "LoRA r=16"."""
    rows = [{"setting": f"LoRA r={r}, rate {rate:g}", "seed": seed, "measures": {"correct": value}}
            for (r, rate), values in {(1, 0.1): (0.4, 0.6), (1, 0.2): (0.9, 0.7),
                                      (1, 0.3): (0.7, 0.7), (16, 0.1): (1.0, 1.0)}.items()
            for seed, value in enumerate(values)]  # fmt: skip
    results = from_rows("made_up", rows, {})
    assert peft_methods.best(results, "LoRA r=1") == "LoRA r=1, rate 0.2"
    assert peft_methods.of(results, "LoRA r=1").values == (0.9, 0.7)


def test_each_method_has_three_rates_and_all_else_alike():
    assert len(peft_methods.GRID) == 3 * len(peft_methods.METHODS)
    for setting in peft_methods.GRID.values():
        assert set(setting) == {"method", "lr"}
        assert setting["lr"] in peft_methods.METHODS[setting["method"]][1]
    named = {m for methods in peft_methods.FAMILIES.values() for m in methods}
    assert named == set(peft_methods.METHODS)


def test_the_scaling_is_the_same_at_every_rank():
    for r in peft_methods.RANKS:
        lora = peft_methods.METHODS[f"LoRA r={r}"][0]["lora"]
        assert lora["lora_alpha"] / lora["r"] == 2


def test_control_a_model_that_learnt_nothing_fails_the_check():
    start, tokenizer = codes.tuning.shipped("instruct")
    assert outside(codes.correct(start, tokenizer, codes.draw_codes(SEED)[1]))


def test_control_an_update_that_is_left_out_fails_the_check(monkeypatch):
    monkeypatch.setattr(lora_layer, "lora_scaling", lambda *given: 0.0)
    assert outside(peft_methods.run(peft_methods.GRID[CHECKED], SEED)["correct"])


def test_the_figures_are_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(peft_methods, "shipped", None)
    results = load("peft_methods")
    assert plotting.show(peft_methods.draw(results), "points").alt
    assert plotting.show(peft_methods.draw_rates(results, ("full", "norms")), "lines").alt


@pytest.mark.parametrize("setting", peft_methods.GRID)
def test_each_setting_has_every_measure(setting):
    results = load("peft_methods")
    for measure in ("correct", "trained words", "trained", "share"):
        values = results.of(setting, measure)
        assert len(values) == len(peft_methods.SEEDS) and all(map(math.isfinite, values))
