"""The recipe of the instruct model in miniature: its stream resumes, its figures are shares."""

import json

import pytest
import torch

from course_lib import load_model, model_path
from course_lib.files import read_text
from course_lib.models import save_pretrained
from course_lib.ops import IGNORE_INDEX
from course_lib.recipes import instruct as r
from course_lib.world.instructions import CLUSTERS, INSTRUCTIONS

RECIPE = r.Recipe(seed=3, max_steps=6, batch_size=8, warmup_steps=2)


@pytest.fixture(scope="module")
def tokenizer():
    return load_model("base", "cpu")[1]


def first_batches(recipe, tokenizer, count):
    stream = r.InstructionBatches(recipe, tokenizer, 256)
    return [next(stream) for _ in range(count)]


# --- batches ------------------------------------------------------------------------------------


def test_batches_go_on_where_their_state_says(tokenizer):
    stream = r.InstructionBatches(RECIPE, tokenizer, 256)
    next(stream), next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    third = next(stream)
    again = r.InstructionBatches(RECIPE, tokenizer, 256)
    again.load_state_dict(state)
    repeated = next(again)
    assert all(torch.equal(third[name], repeated[name]) for name in third)
    first = first_batches(RECIPE, tokenizer, 1)[0]
    assert not torch.equal(first["input_ids"][:1, :64], third["input_ids"][:1, :64])


def test_rows_are_chats_and_documents_in_their_shares(tokenizer):
    """With 30 % replay 50 batches of 8 rows hold about 120 documents (± 5 · 9.2) and 280 chats.

    Each chat has one ``<|user|>``, a document none; both end in ``<|end|>``, unless a document was
    cut at 256 tokens.
    """
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    batches = first_batches(RECIPE, tokenizer, 50)
    chats = sum((b["input_ids"] == user).sum().item() for b in batches)
    assert 234 <= chats <= 326
    pure = first_batches(r.Recipe(seed=3, replay=1.0), tokenizer, 2)
    assert all((b["input_ids"] != user).all() for b in pure)


def test_only_responses_of_chats_are_learnt(tokenizer):
    """Without replay no label stands on a prompt: ``<|user|>`` and ``<|assistant|>`` have none."""
    opening = torch.tensor(tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"]))
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    for batch in first_batches(r.Recipe(seed=3, batch_size=8, replay=0.0), tokenizer, 5):
        labelled = batch["labels"] != IGNORE_INDEX
        assert not torch.isin(batch["input_ids"][labelled], opening).any()
        assert (batch["labels"] == end).sum() == 8


# --- the run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    build = tmp_path_factory.mktemp("build")
    return r.tune(RECIPE, model_path("base"), build), build


def test_the_run_changes_the_base_model_and_keeps_its_metrics(run):
    model, build = run
    base = load_model("base", "cpu")[0]
    assert not torch.equal(model.embed.weight.cpu(), base.embed.weight)
    assert len(read_text(build / "metrics.csv").splitlines()) == 1 + RECIPE.max_steps


def test_called_again_it_does_not_train_again(run, monkeypatch):
    model, build = run
    monkeypatch.setattr(r, "sft_loss", None)
    again = r.tune(RECIPE, model_path("base"), build)
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in model.state_dict().items())


def test_a_run_of_another_recipe_is_not_continued(run):
    _, build = run
    with pytest.raises(ValueError, match=r"differs in replay.* choose another"):
        r.tune(r.Recipe(**{**vars(RECIPE), "replay": 0.5}), model_path("base"), build)


# --- what is reported ---------------------------------------------------------------------------


def test_figures_are_shares_of_each_cluster(monkeypatch):
    """A model right wherever steps are asked for: 1 in that cluster and 0 in all others, and of all
    items the share of that cluster's tasks, each task counting alike."""

    def answered(model, tokenizer, pairs, max_new_tokens):
        return ["The answer is" in response for _, response in pairs]

    monkeypatch.setattr(r, "answered", answered)
    figures = r.instruction_figures(None, None, items_per_task=2)
    assert figures.pop("instructions_reasoning") == 1.0
    share = len(CLUSTERS["reasoning"]) / len(INSTRUCTIONS)
    assert figures.pop("instructions_all") == pytest.approx(share)
    assert figures.pop("instructions_unseen_wording") == pytest.approx(share)
    assert set(figures) == {f"instructions_{c}" for c in CLUSTERS if c != "reasoning"}
    assert set(figures.values()) == {0.0}


def test_items_of_the_figures_are_held_out_and_differ_by_seed(monkeypatch):
    seen = []

    def answered(model, tokenizer, pairs, max_new_tokens):
        seen.append(pairs)
        return [True] * len(pairs)

    monkeypatch.setattr(r, "answered", answered)
    r.instruction_figures(None, None, 0, items_per_task=1)
    r.instruction_figures(None, None, 1, items_per_task=1)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert first != second
    assert sum(map(len, first)) == 2 * len(INSTRUCTIONS)


def test_the_card_states_the_recipe_and_the_figures(run, tmp_path):
    model, _ = run
    save_pretrained(model, tmp_path, dtype=torch.float16)
    tables = [{"instructions_all": 0.25}, {"instructions_all": 0.75}]
    r.write_card(RECIPE, tables, 0.4321, tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for line in (
        f"on {len(INSTRUCTIONS)} tasks in chat format",
        "seed 3; 30% of the rows are documents",
        "| training | 6 steps of 8 rows",
        "| last training loss | 0.432 nats a token |",
        "| precision | fp32 |",
        "| `instructions_all` | 0.500 | 0.250 | 0.750 |",
    ):
        assert line in card, line
    assert "{" not in card
