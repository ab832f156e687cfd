"""The recipe of the preference model in miniature: three steps, each resumed, none run twice."""

import pytest
import torch

from course_lib import load_model, model_path, rlhf
from course_lib.models import save_pretrained
from course_lib.recipes import preference as r

RECIPE = r.Recipe(seed=3, sft_steps=2, batch_size=4, rankings=4, reward_steps=2, updates=1)


@pytest.fixture(scope="module")
def tokenizer():
    return load_model("base", "cpu")[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    build = tmp_path_factory.mktemp("build")
    return r.tune(RECIPE, model_path("instruct"), build), build


def weights(model):
    return model.state_dict()


def same(one, other):
    return all(torch.equal(w, weights(other)[name]) for name, w in weights(one).items())


def test_each_step_trains_a_model_of_its_own(run):
    """The reference of PPO is the model after step 1, unchanged; the reward model is neither."""
    trained, _ = run
    instruct = load_model("instruct", "cpu")[0]
    assert not same(instruct, trained.policy)
    assert not same(trained.policy, trained.preference)
    assert not same(trained.policy, trained.reward_model.model)
    assert len(trained.history) == RECIPE.updates


def test_called_again_it_trains_nothing_again(run, monkeypatch):
    trained, build = run
    for name in ("sft_loss", "ranking_loss"):
        monkeypatch.setattr(r, name, None)
    monkeypatch.setattr(r, "ppo_loss", lambda settings: None)
    again = r.tune(RECIPE, model_path("instruct"), build)
    for name in ("policy", "reward_model", "preference"):
        assert same(getattr(trained, name), getattr(again, name)), name
    assert again.history == trained.history


def test_killed_in_the_third_step_it_goes_on_to_the_same_weights(run, tmp_path, monkeypatch):
    """Two steps of PPO's eight are made, then the run dies; a checkpoint is written every step."""
    trained, _ = run
    real, steps = r.ppo_loss, []

    def dies(settings):
        loss = real(settings)

        def loss_fn(model, batch):
            steps.append(1)
            if len(steps) == 3:
                raise KeyboardInterrupt
            return loss(model, batch)

        return loss_fn

    train = r.train
    monkeypatch.setattr(
        r, "train", lambda *args, **how: train(*args, **how | {"checkpoint_every": 1})
    )
    with monkeypatch.context() as broken:
        broken.setattr(r, "ppo_loss", dies)
        with pytest.raises(KeyboardInterrupt):
            r.tune(RECIPE, model_path("instruct"), tmp_path)
    again = r.tune(RECIPE, model_path("instruct"), tmp_path)
    assert same(trained.preference, again.preference)


def test_a_run_of_another_recipe_is_not_continued(run):
    _, build = run
    with pytest.raises(ValueError, match=r"differs in kl_coef.* choose another"):
        r.tune(r.Recipe(**{**vars(RECIPE), "kl_coef": 0.5}), model_path("instruct"), build)


def test_step_1_mixes_demonstrations_tasks_and_documents(tokenizer, tmp_path, monkeypatch):
    """100 batches of 4 rows at shares .3, .2, .5: 400 rows, five standard deviations are 46, 40 and
    50 of them. A question of a guest begins as no task does."""
    seen = []
    monkeypatch.setattr(r, "train", lambda model, stream, *_, max_steps, **__: seen.extend(
        next(stream) for _ in range(max_steps)))  # fmt: skip
    model = load_model("instruct", "cpu")[0]
    r.step_1(r.Recipe(seed=3, sft_steps=100, batch_size=4), model, tokenizer, tmp_path)
    text = "".join(tokenizer.decode(row) for batch in seen for row in batch["input_ids"].tolist())
    guests, chats = text.count("What is good at the"), text.count("<|user|>")
    assert abs(guests - 120) <= 46 and abs(chats - guests - 200) <= 50


def test_the_figures_are_of_held_out_places(run, tokenizer):
    """And the same for the same seed; every reply is counted."""
    trained, _ = run
    figures = r.guest_figures(trained.preference, tokenizer, seed=1, count=8)
    assert figures == r.guest_figures(trained.preference, tokenizer, seed=1, count=8)
    replies = rlhf.ask_held_out(trained.preference, tokenizer, 1, 8)
    assert figures["guests_truth"] == pytest.approx(sum(x.truth for x in replies) / 8)
    assert set(figures) == {f"guests_{name}" for name in rlhf.figures(replies)}


def test_the_card_states_the_recipe_the_steps_and_the_figures(run, tmp_path):
    trained, _ = run
    save_pretrained(trained.preference, tmp_path, dtype=torch.float16)
    row = {name: 0.25 for name in r.COLUMNS}
    steps = {"demonstrations": row, "best of 16": row, "ppo": row | {"truth": 1.5, "kl": 4.2}}
    r.write_card(RECIPE, steps, [{"guests_truth": 1.0}, {"guests_truth": 2.0}], tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for line in (
        "seed 3; labellers with noise 0.5",
        "2 steps of 4 rows: 30% demonstrations, 20% documents",
        "4 rankings of 4 replies, 2 steps of 4 rankings, AdamW (lr 0.002)",
        "1 rollouts of 64 replies, 4 epochs each, KL weight 0.2",
        "KL to the model after step 1: 4.2 nats",
        "| ppo | 1.50 | 0.25 |",
        "| `guests_truth` | 1.500 | 1.000 | 2.000 |",
    ):
        assert line in card, line
