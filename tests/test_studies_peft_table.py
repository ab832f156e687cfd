"""The study of a table in place of a rule: what is asked, and a check that a fault fails."""

import pytest

from course_lib import plotting
from course_lib.studies import codes, load, peft_methods, peft_table

CHECKED = "full, rate 0.001"


def outside(value):
    low, high = load("peft_table").interval_for_a_new_seed(CHECKED, "correct")
    return not low <= value <= high


def test_the_words_of_the_table_are_asked(monkeypatch):
    """128 words, all of them learnt and asked, by a method of the other study."""
    calls = []
    monkeypatch.setattr(peft_table, "shipped", lambda name: (codes.nn.Linear(1, 2), None))
    monkeypatch.setattr(codes, "tuned", lambda start, tok, pairs, seed, lr, steps, **method: (
        calls.append((pairs, lr, steps, method)) or start))  # fmt: skip
    monkeypatch.setattr(codes, "correct", lambda model, tok, pairs: len(set(dict(pairs))))
    found = peft_table.run({"method": "LoRA r=4", "lr": 0.5}, 3)
    ((pairs, lr, steps, method),) = calls
    assert found["correct"] == len(pairs) == peft_table.ENTRIES and found["trained"] == 4
    assert (lr, steps, method) == (0.5, peft_table.STEPS, peft_methods.METHODS["LoRA r=4"][0])


def test_control_a_model_that_learnt_nothing_fails_the_check():
    assert outside(0.0) and outside(1 / 24), "nothing, or chance"


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(peft_table, "shipped", None)
    figure = peft_table.draw(load("peft_table"), load("peft_methods"))
    assert plotting.show(figure, "lines").alt


@pytest.mark.parametrize("setting", peft_table.GRID)
def test_each_setting_has_every_measure(setting):
    for measure in ("correct", "trained"):
        assert len(load("peft_table").of(setting, measure)) == len(peft_table.SEEDS)
