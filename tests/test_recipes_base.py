"""The recipe in miniature: resumes, makes its snapshots once, writes a card that holds."""

import json

import numpy as np
import pytest
import torch

from course_lib.models import LlamaConfig, from_pretrained, save_pretrained
from course_lib.recipes import base as r

CONFIG = LlamaConfig(512, 1, 2, 2, 8, 12, 32)
RECIPE = r.Recipe(
    seed=3, first_steps=40, last_steps=60, max_steps=200, batch_size=2, warmup_steps=5,
    tokenizer_documents=50,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 200 steps on a model of 4,664 parameters: (model, build folder)."""
    build = tmp_path_factory.mktemp("build")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r, "CONFIG", CONFIG)
        patch.setattr(r, "SNAPSHOTS", (100, 200))
        yield r.pretrain(RECIPE, build), build


# --- batches ------------------------------------------------------------------------------------


def batches(count: int = 7) -> r.RowBatches:
    """Rows [0 0], [1 1], ... in batches of two."""
    return r.RowBatches(np.repeat(np.arange(count, dtype=np.uint16)[:, None], 2, axis=1), 2)


def test_rows_come_in_order_and_a_short_rest_is_left():
    """Seven rows: 0 1, 2 3, 4 5; the last is alone."""
    blocks = [b["input_ids"] for b in batches()]
    assert [b[:, 0].tolist() for b in blocks] == [[0, 1], [2, 3], [4, 5]]
    assert all(b.dtype == torch.int64 for b in blocks)


def test_row_batches_go_on_where_their_state_says():
    first = batches()
    next(first), next(first)
    state = json.loads(json.dumps(first.state_dict()))
    again = batches()
    again.load_state_dict(state)
    assert [b["input_ids"][:, 0].tolist() for b in again] == [[4, 5]]


def test_every_snapshot_falls_on_a_step_at_which_one_is_taken():
    """Snapshots between them were once asked for and silently never taken."""
    assert r.SNAPSHOTS and all(s % r.SNAPSHOT_EVERY == 0 for s in r.SNAPSHOTS)
    assert max(r.SNAPSHOTS) < r.Recipe.max_steps


def test_a_scaled_recipe_keeps_its_proportions():
    """200 steps with 40 and 60 in the first and last stage, in a tenth of the steps."""
    small = RECIPE.scaled(20)
    assert (small.first_steps, small.main_steps, small.last_steps) == (4, 10, 6)
    whole = r.Recipe()
    assert small.batch_size == RECIPE.batch_size and whole.scaled(whole.max_steps) == whole


def test_the_learning_rate_falls_twice():
    """140 steps down from 1: .5 at 70; then 60 from .3 on: .15 at 170, 0 at the end."""
    factors = [RECIPE.lr_schedule(step) for step in (0, 70, 140, 170, 200)]
    assert factors == pytest.approx([1.0, 0.5, 0.3, 0.15, 0.0])


# --- the run ------------------------------------------------------------------------------------


def test_the_run_learns_and_leaves_its_files(run):
    model, build = run
    assert len((build / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 201
    curve = r.loss_curve(build, points=4)  # 200 steps in stretches of 50
    assert [c["step"] for c in curve] == [50, 100, 150, 200]
    assert curve[0]["loss"] > curve[-1]["loss"] + 0.3
    rows = r.prepare_corpus(RECIPE, build)[1]
    stages = [  # 40, 100 and 60 steps of 2 · 32 tokens
        np.load(build / f"rows-{stage}.npy")
        for stage in ("first-3-2560", "main-3-6400", "last-3-3840")
    ]
    assert rows.shape == (400, 32) and np.array_equal(rows, np.concatenate(stages))
    assert sorted(p.name for p in (build / "snapshots").iterdir()) == ["00100", "00200"]
    early, last = (
        from_pretrained(build / "snapshots" / name).state_dict() for name in ("00100", "00200")
    )
    assert not torch.equal(early["embed.weight"], last["embed.weight"])


def test_the_weights_are_the_mean_of_those_around_the_last_stage(run):
    """Step 140 of 200, saved as before-last, and the end, of which there is a snapshot."""
    model, build = run
    before, after = (
        from_pretrained(build / name).state_dict() for name in ("before-last", "snapshots/00200")
    )
    for name, weight in model.state_dict().items():
        assert torch.allclose(weight, (before[name] + after[name]) / 2, atol=1e-7), name
    assert not torch.equal(before["embed.weight"], after["embed.weight"])


def test_called_again_it_does_not_train_again(run, monkeypatch):
    """The weights come from the checkpoint; a loss that were computed would raise."""
    model, build = run
    monkeypatch.setattr(r, "causal_lm_loss", None)
    monkeypatch.setattr(r, "train_tokenizer", None)
    before = {p: p.stat().st_mtime_ns for p in build.rglob("*.safetensors")}
    again = r.pretrain(RECIPE, build)
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in model.state_dict().items())
    assert before == {p: p.stat().st_mtime_ns for p in build.rglob("*.safetensors")}


def test_a_run_of_another_recipe_is_not_continued(run):
    _, build = run
    other = r.Recipe(**{**vars(RECIPE), "max_steps": 300, "muon_lr": 0.01})
    with pytest.raises(ValueError, match=r"differs in max_steps, muon_lr.* choose another"):
        r.pretrain(other, build)


def test_figures_of_snapshots_are_measured_once(run, monkeypatch):
    """{"step", "tokens", figure}: step 100 has read 100 · 2 · 32 = 6,400 tokens."""
    _, build = run
    monkeypatch.setattr(r, "EMERGENCE_FIGURES", ("unseen_labels_0shot",))
    monkeypatch.setattr(r, "SMOOTH_FIGURES", ("unseen_labels_0shot",))
    first = r.evaluate_snapshots(RECIPE, build, items=2)
    assert [(t["step"], t["tokens"]) for t in first] == [(100, 6400), (200, 12800)]
    assert all(0 <= t["unseen_labels_0shot"] <= 1 and t["loss"] > 0 for t in first)
    assert all(t["unseen_labels_0shot_nats"] > 0 for t in first)
    monkeypatch.setattr(r, "evaluate", None)
    assert r.evaluate_snapshots(RECIPE, build, items=2) == first


# --- what is reported ---------------------------------------------------------------------------


def test_the_curve_is_the_mean_of_each_stretch(tmp_path):
    """Losses 6 4 | 3 1 | 2 in two points: stretches of 5 // 2 = 2 steps and the rest."""
    lines = ["step,loss"] + [f"{i + 1},{loss}" for i, loss in enumerate((6, 4, 3, 1, 2))]
    (tmp_path / "metrics.csv").write_text("\n".join(lines), encoding="utf-8")
    assert r.loss_curve(tmp_path, points=2) == [
        {"step": 2, "loss": 5.0}, {"step": 4, "loss": 2.0}, {"step": 5, "loss": 2.0}
    ]  # fmt: skip
    assert [c["loss"] for c in r.loss_curve(tmp_path, points=99)] == [6, 4, 3, 1, 2]


def test_the_card_states_the_model_the_recipe_and_the_figures(run, tmp_path):
    """Parameters: 512 · 8 embeddings, 4 · 8² attention, 3 · 8 · 12 feed-forward and three norms of
    8 make 4,664. Figures .25 and .75 over two seeds: mean .500, least .250, most .750."""
    model, _ = run
    save_pretrained(model, tmp_path, dtype=torch.float16)
    tables = [{"facts": 0.25, "loss": 1.5}, {"facts": 0.75, "loss": 1.5}]
    r.write_card(RECIPE, tables, [{"step": 200, "loss": 4.5678}], tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for line in (
        "of 4,664 parameters",
        "| layers, heads, width, feed-forward | 1, 2, 8, 12 |",
        "| training | 200 steps of 2 × 32: 0.0 M tokens, seed 3 |",
        "Muon (lr 0.015)", "AdamW (lr 0.003)",
        "5 steps of warm-up, then linearly to zero; in the last stage once more, from 0.3 of",
        "| last 60 steps | list operations 24%", "| precision | fp32 |",
        "| last training loss | 4.568 nats a token |",
        "evaluation seeds 0, 1.",
        "| `facts` | 0.500 | 0.250 | 0.750 |",
        "| `loss` | 1.500 | 1.500 | 1.500 |",
    ):  # fmt: skip
        assert line in card, line
    assert "{" not in card
