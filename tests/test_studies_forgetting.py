"""The study of forgetting: a full design, and a live check that a fault fails."""

from itertools import product

from course_lib import plotting
from course_lib.studies import forgetting, load, tuning
from course_lib.world.instructions import INSTRUCTIONS

SEED = 9


def outside(measure, value):
    low, high = load("forgetting").interval_for_a_new_seed(forgetting.CURED, measure)
    return not low <= value <= high


def test_the_design_is_full():
    """Two tasks by two rates by two shares of replay: eight runs, each combination once."""
    runs = [(s["tasks"], s["lr"], s["replay"]) for s in forgetting.GRID.values() if "tasks" in s]
    factors = (forgetting.TASKS, forgetting.RATES.values(), forgetting.REPLAY.values())
    assert sorted(r for r in runs if r[1] != forgetting.LOWEST) == sorted(product(*factors))
    assert set(forgetting.TASKS["many tasks"]) <= set(INSTRUCTIONS)
    assert "sentiment" not in forgetting.OTHERS


def test_kept_is_the_mean_of_six_abilities():
    results = load("forgetting")
    for setting in forgetting.GRID:
        six = [results.of(setting, name) for name in tuning.ABILITIES]
        for i, kept in enumerate(results.of(setting, "kept")):
            assert abs(kept - sum(column.values[i] for column in six) / 6) < 1e-9


def test_control_labels_on_the_prompt_fail_the_live_check(monkeypatch):
    """Question learnt, answer not: other instructions stay where the base model has them."""
    real = forgetting.rows

    def inverted(*args):
        for row in real(*args):
            if -100 in row["labels"]:
                pairs = zip(row["input_ids"], row["labels"], strict=True)
                row["labels"] = [i if label == -100 else -100 for i, label in pairs]
            yield row

    monkeypatch.setattr(forgetting, "rows", inverted)
    model, tokenizer = forgetting.model_of(forgetting.GRID[forgetting.CURED], SEED)
    some = tuning.held_out_examples(forgetting.OTHERS, SEED, 2, templates=forgetting.TEMPLATES)
    scores = tuning.chat_scores(model, tokenizer, some)
    assert outside("other instructions", scores["correct"])


def test_control_one_task_at_the_high_rate_fails_the_live_check():
    setting = forgetting.GRID["one task, high rate, no replay"]
    model, tokenizer = forgetting.model_of(setting, SEED)
    assert outside("sums", tuning.abilities(model, tokenizer, SEED, forgetting.ITEMS)["sums"])


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(tuning, "shipped", None)
    assert plotting.show(forgetting.draw(load("forgetting")), "a table").alt
