"""The recipe of the reasoning model in miniature: SFT, GRPO, resumed, none run twice."""

import pytest
import torch

from course_lib import load_model, model_path, reasoning
from course_lib.models import save_pretrained
from course_lib.recipes import reasoning as r

RECIPE = r.Recipe(seed=3, start_steps=2, operands=(2, 3), updates=3, groups=2, group_size=2)


@pytest.fixture(scope="module")
def tokenizer():
    return load_model("base", "cpu")[1]


@pytest.fixture(scope="module")
def short():
    """Responses of at most 24 tokens, so that the runs are short."""
    real = reasoning.grpo_settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reasoning, "grpo_settings",
                      lambda **changes: real(**changes, max_new_tokens=24))  # fmt: skip
        yield


@pytest.fixture(scope="module")
def run(short, tmp_path_factory):
    build = tmp_path_factory.mktemp("build")
    return r.tune(RECIPE, model_path("base"), build), build


def same(one, other):
    theirs = other.state_dict()
    return all(torch.equal(weight, theirs[name]) for name, weight in one.state_dict().items())


def test_each_step_trains_a_model_of_its_own(run):
    trained, _ = run
    base = load_model("base", "cpu")[0]
    assert not same(base, trained.start)
    assert len(trained.history) == RECIPE.updates
    assert all(row["kept"] == RECIPE.groups for row in trained.history)


def test_grpo_trains_where_a_group_is_alive(run, tokenizer, tmp_path, monkeypatch):
    """Scores by the parity of the length: a program's, and most groups of two differ in it."""
    monkeypatch.setattr(reasoning, "scorer", lambda *given: lambda prompts, written: torch.tensor(
        [float(len(row) % 2) for row in written]))  # fmt: skip
    start = run[0].start
    tuned, history = r.reinforce(r.Recipe(**{**vars(RECIPE), "group_size": 8}), start, tokenizer,
                                 tmp_path)  # fmt: skip
    assert min(row["dead"] for row in history) < 1
    assert not same(start, tuned)


def test_called_again_it_trains_nothing_again(run, monkeypatch):
    trained, build = run
    monkeypatch.setattr(r, "grpo_loss", lambda settings: None)
    again = r.tune(RECIPE, model_path("base"), build)
    assert same(trained.start, again.start) and same(trained.reasoning, again.reasoning)
    assert again.history == trained.history


def test_killed_it_goes_on_to_the_same_weights(run, tmp_path, monkeypatch):
    """Two of three steps are made, then the run dies; a checkpoint is written every step."""
    trained, _ = run
    real, steps = r.grpo_loss, []

    def dies(settings):
        loss = real(settings)

        def loss_fn(model, batch):
            steps.append(1)
            if len(steps) == 3:
                raise KeyboardInterrupt
            return loss(model, batch)

        return loss_fn

    monkeypatch.setattr(r, "EVERY", 1)
    with monkeypatch.context() as broken:
        broken.setattr(r, "grpo_loss", dies)
        with pytest.raises(KeyboardInterrupt):
            r.tune(RECIPE, model_path("base"), tmp_path)
    again = r.tune(RECIPE, model_path("base"), tmp_path)
    assert same(trained.reasoning, again.reasoning) and again.history == trained.history


def test_a_run_of_another_recipe_is_not_continued(run):
    _, build = run
    with pytest.raises(ValueError, match=r"differs in lr.* choose another"):
        r.tune(r.Recipe(**{**vars(RECIPE), "lr": 1e-3}), model_path("base"), build)


def test_the_figures_are_of_held_out_sums(run, tokenizer, monkeypatch):
    """100 sums each in all; here two, and the same for the same seed."""
    asked = []
    real = reasoning.problems

    def noted(seed, operands, held_out=False):
        asked.append(held_out)
        return real(seed, operands, held_out)

    monkeypatch.setattr(reasoning, "problems", noted)
    figures = r.sum_figures(run[0].reasoning, tokenizer, seed=1, count=2)
    assert set(figures) == {*(f"sums_{n}" for n in r.NUMBERS), "sums_5_sound", "sums_5_corpus"}
    assert all(asked) and all(0 <= share <= 1 for share in figures.values())


def test_the_card_states_the_recipe_the_steps_and_the_figures(run, tmp_path):
    save_pretrained(run[0].reasoning, tmp_path, dtype=torch.float16)
    row = {f"sums_{n}": n / 10 for n in r.NUMBERS}
    r.write_card(RECIPE, {"SFT": row, "GRPO": row | {"sums_8": 0.25}},
                 [{"sums_5": 0.5}, {"sums_5": 1.0}], tmp_path)  # fmt: skip
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for line in (
        "2 steps of 16 sums of two or three numbers, AdamW (lr 0.0003)",
        "3 rollouts of 2 prompts, 2 responses each",
        "sums of 2, 3 numbers, seed 3",
        "| | 2 | 3 | 4 | 5 | 6 | 7 | 8 |",
        "| GRPO | 0.20 | 0.30 | 0.40 | 0.50 | 0.60 | 0.70 | 0.25 |",
        "| `sums_5` | 0.750 | 0.500 | 1.000 |",
    ):
        assert line in card, line
