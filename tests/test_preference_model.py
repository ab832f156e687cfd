"""The shipped preference model is what its card says: better to guests, and little forgotten."""

import json

import pytest

from course_lib import load_model, model_path
from course_lib.recipes.instruct import instruction_figures
from course_lib.recipes.preference import Recipe, guest_figures


@pytest.fixture(scope="module")
def preference():
    return load_model("preference", "cpu")


def tables(stage="preference"):
    return json.loads((model_path(stage) / "evaluation.json").read_text(encoding="utf-8"))["seeds"]


def history():
    return json.loads((model_path("preference") / "history.json").read_text(encoding="utf-8"))


def mean(name, stage="preference"):
    return sum(table[name] for table in tables(stage)) / 3


def test_the_guests_figures_are_measured_again(preference):
    """400 sampled replies, and on another processor other samples: the truth has a standard
    deviation of about 1 a reply, so .05 of a mean, and √2 · .05 · 5 = .35 of a difference."""
    measured, stored = guest_figures(*preference, seed=0), tables()[0]
    assert measured["guests_truth"] == pytest.approx(stored["guests_truth"], abs=0.35)
    assert measured["guests_reasons"] == pytest.approx(stored["guests_reasons"], abs=0.35)


def test_other_instructions_are_measured_again(preference):
    """As for the instruct model: six of 600 answers may fall the other way."""
    measured = instruction_figures(*preference, seed=0)["instructions_all"]
    assert measured == pytest.approx(tables()[0]["instructions_all"], abs=0.011)


def test_ppo_gave_more_than_best_of_16_and_more_than_politeness():
    steps = history()["steps"]
    assert steps["ppo"]["truth"] > steps["best of 16"]["truth"] > steps["demonstrations"]["truth"]
    assert steps["ppo"]["reasons"] > steps["demonstrations"]["reasons"] + 0.5
    assert 0 < steps["ppo"]["kl"] < 5


def test_it_kept_most_of_what_the_instruct_model_does():
    assert mean("instructions_all") >= mean("instructions_all", "instruct") - 0.1


def test_the_card_states_the_recipe_and_every_figure():
    card = (model_path("preference") / "README.md").read_text(encoding="utf-8")
    recipe = Recipe()
    assert f"{recipe.updates} rollouts of 64 replies" in card
    assert f"{recipe.rankings:,} rankings of 4 replies" in card
    assert all(f"| `{name}` |" in card for name in tables()[0])


def test_it_speaks_with_the_tokenizer_of_the_others():
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        files = [(model_path(stage) / name).read_bytes() for stage in ("base", "preference")]
        assert files[0] == files[1], name


def test_it_is_small_enough_to_ship():
    size = sum(path.stat().st_size for path in model_path("preference").iterdir())
    assert size < 4_000_000
