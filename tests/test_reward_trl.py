"""The reward model beside trl's RewardTrainer: rows, the loss of given scores, training.

Their head has no bias. Differences of scores do not see ours, so it is held at 0.
"""

import copy
import random
from types import SimpleNamespace

import pytest
import torch
import transformers
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_record import Parity
from random_families import build
from torch import nn
from transformers import PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from course_lib.chat import turns
from course_lib.models import WithScalarHead, from_transformers
from course_lib.reward import (
    bradley_terry_loss,
    collate_rankings,
    encode_completion,
    ranking_loss,
    score_rows,
)
from course_lib.training import train
from course_lib.world.instructions import draw_example
from course_lib.world.tokenizer import save_tokenizer, train_tokenizer

STEPS, BATCH, BLOCK, LR = 10, 4, 128, 1e-3
TOLERANCE = 1e-5
FAMILIES = {
    "Llama": ("LlamaForCausalLM", "LlamaForSequenceClassification"),
    "GPT-2": ("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
}


@pytest.fixture(scope="module")
def comparisons():
    """48 of (prompt, preferred response, other response)."""
    rng = random.Random(5)
    drawn = [draw_example(rng, rng.choice(["plural", "last", "largest"])) for _ in range(200)]
    triples = [(a.prompt, a.response, b.response) for a, b in zip(drawn[::2], drawn[1::2])]
    return [triple for triple in triples if triple[1] != triple[2]][:48]


@pytest.fixture(scope="module")
def tokenizer(comparisons, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [" ".join(triple) for triple in comparisons]
    save_tokenizer(train_tokenizer(texts, 400), folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def rows(tokenizer, comparisons):
    """(row of the preferred response, row of the other)."""
    return [tuple(encode_completion(tokenizer, prompt, text) for text in texts)
            for prompt, *texts in comparisons]  # fmt: skip


def pair_of(family: str, tokenizer) -> tuple[WithScalarHead, nn.Module]:
    """Our reward model and theirs, with the same random weights."""
    causal, classifier = (getattr(transformers, name) for name in FAMILIES[family])
    sizes = {"vocab_size": len(tokenizer), "layers": 2, "heads": 3, "width": 4, "inner": 20,
             "length": BLOCK, "tied": False}  # fmt: skip
    hf_model = build(causal, sizes, 0)
    ours = WithScalarHead(from_transformers(hf_model), 0.5, torch.Generator().manual_seed(0))
    ours.head.bias.requires_grad_(False)
    config = copy.deepcopy(hf_model.config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    theirs = classifier(config)
    theirs.base_model.load_state_dict(hf_model.base_model.state_dict())
    theirs.score.weight.data.copy_(ours.head.weight.data[None])
    return ours, theirs


def trainer_of(model, tokenizer, columns, folder, **changes) -> RewardTrainer:
    """trl's trainer with our loop's settings: what it would do otherwise is named here."""
    plain = {
        "bf16": False, "activation_checkpointing": False, "use_cpu": True,
        "train_sampling_strategy": "sequential", "adam_beta2": 0.95, "lr_scheduler_type": "linear",
        "max_length": BLOCK, "max_steps": STEPS, "per_device_train_batch_size": BATCH,
        "learning_rate": LR, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "dataset_num_proc": None,
    }  # fmt: skip
    config, dataset = RewardConfig(str(folder), **(plain | changes)), Dataset.from_dict(columns)
    return RewardTrainer(model, config, train_dataset=dataset, processing_class=tokenizer)


def columns_of(rows, margins=None) -> dict:
    columns = {"chosen_ids": [a for a, _ in rows], "rejected_ids": [b for _, b in rows]}
    return columns if margins is None else columns | {"margin": margins}


def batches_of(rows, pad: int) -> list[dict]:
    """A pair is a ranking of two."""
    return [collate_rankings([[(a, 0), (b, 1)] for a, b in rows[i : i + BATCH]], pad)
            for i in range(0, BATCH * STEPS, BATCH)]  # fmt: skip


# --- rows ---------------------------------------------------------------------------------------


def test_rows_and_batches_are_those_of_trl(tokenizer, comparisons, rows, tmp_path):
    """From chats, by their tokenising, and one batch: their first half is preferred."""
    columns = {
        "prompt": [turns(prompt) for prompt, *_ in comparisons],
        **{name: [[{"role": "assistant", "content": triple[i]}] for triple in comparisons]
           for i, name in enumerate(("chosen", "rejected"), 1)},
    }  # fmt: skip
    _, model = pair_of("Llama", tokenizer)
    theirs = trainer_of(model, tokenizer, columns, tmp_path).train_dataset
    assert [tuple(pair) for pair in zip(theirs["chosen_ids"], theirs["rejected_ids"])] == rows
    pad = tokenizer.pad_token_id
    their_batch = DataCollatorForPreference(pad)([theirs[i] for i in range(BATCH)])
    batch = batches_of(rows, pad)[0]
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batch[name].transpose(0, 1).flatten(0, 1), their_batch[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_a_sequence_classifier(family, tokenizer, rows):
    ours, theirs = pair_of(family, tokenizer)
    flat, pad = [row for pair in rows for row in pair], tokenizer.pad_token_id
    batch = tokenizer.pad({"input_ids": flat}, return_tensors="pt", padding_side="right")
    with torch.no_grad():
        logits = theirs.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    with Parity(f"Reward model on {family}", f"transformers.{FAMILIES[family][1]}",
                TOLERANCE) as parity:  # fmt: skip
        parity.tried()
        parity.compare(score_rows(ours, flat, pad), logits[:, 0])


# --- the loss -----------------------------------------------------------------------------------


class Scores(nn.Module):
    """A model that says given scores, those of the preferred responses first."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, **inputs):
        return SimpleNamespace(logits=self.scores[:, None])


@pytest.fixture(scope="module")
def trainer(tokenizer, rows, tmp_path_factory):
    _, model = pair_of("Llama", tokenizer)
    return trainer_of(model, tokenizer, columns_of(rows), tmp_path_factory.mktemp("trl"))


def test_the_loss_of_given_scores_is_that_of_trl(trainer):
    """Scores of up to ±100, with and without margins and centring: the mean over the pairs."""
    score = st.floats(-100, 100, width=32)
    with Parity("Bradley-Terry loss", "trl.RewardTrainer", TOLERANCE) as parity:

        @settings(max_examples=60, deadline=None, derandomize=True)
        @given(
            st.lists(st.tuples(score, score, st.floats(-3, 3, width=32)), min_size=1, max_size=6),
            st.booleans(), st.sampled_from([None, 0.01, 0.0001]),
        )  # fmt: skip
        def compare(pairs, with_margin, coefficient):
            chosen, rejected, margin = torch.tensor(pairs).unbind(1)
            trainer.args.center_rewards_coefficient = coefficient
            inputs = {
                "attention_mask": torch.ones(1),
                **({"margin": margin} if with_margin else {}),
            }
            theirs = trainer.compute_loss(Scores(torch.cat([chosen, rejected])), inputs)
            loss = bradley_terry_loss(chosen, rejected, margin=margin if with_margin else None,
                                      centring=coefficient or 0.0)  # fmt: skip
            # In units of the loss: float32 holds losses above 100 to some 1e-5.
            size = theirs.abs().clamp(min=1)
            parity.compare(loss.mean() / size, theirs / size)
            parity.tried()

        compare()
    trainer.args.center_rewards_coefficient = None


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("margin", "centring"), [(0.0, None), (0.5, 0.01)])
def test_losses_are_those_of_trl_one_by_one(
    family, margin, centring, tokenizer, rows, tmp_path
):  # fmt: skip
    """The same weights, data, order, optimizer and schedule: ten losses, accuracies and margins.
    Their margin stands in the data, ours is one a rank."""
    ours, theirs = pair_of(family, tokenizer)
    columns = columns_of(rows, [margin] * len(rows) if margin else None)
    trainer = trainer_of(theirs, tokenizer, columns, tmp_path, center_rewards_coefficient=centring)
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    history = train(
        ours, batches_of(rows, tokenizer.pad_token_id),
        lambda model, batch: ranking_loss(model, batch, margin=margin, centring=centring or 0.0),
        max_steps=STEPS, lr=LR, progress=False,
    )  # fmt: skip
    assert len(history) == len(log) == STEPS
    what = "with margin and centring" if margin else "alone"
    with Parity(f"Reward model training {what}, {family}, {STEPS} losses", "trl.RewardTrainer",
                TOLERANCE) as parity:  # fmt: skip
        parity.tried()
        for name in ("loss", "margin", "accuracy"):
            ours_and_theirs = [[row[name] for row in table] for table in (history, log)]
            parity.compare(*map(torch.tensor, ours_and_theirs))
    assert max(row["loss"] for row in log) - min(row["loss"] for row in log) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_after_a_step_are_those_of_trl(family, tokenizer, rows, tmp_path):
    """In float64: AdamW's first step is of size lr whatever the gradient's, so rounding decides the
    direction where the gradient is nearly 0. The head, and each weight of the trunk, by its name
    over there."""
    ours, theirs = (model.double() for model in pair_of(family, tokenizer))
    before = [p.detach().clone() for p in ours.parameters()]
    trainer = trainer_of(theirs, tokenizer, columns_of(rows), tmp_path, max_steps=1)
    trainer.train()
    train(ours, batches_of(rows, tokenizer.pad_token_id)[:1], ranking_loss, max_steps=1, lr=LR,
          progress=False)  # fmt: skip
    trunk = from_causal(family, trainer.model, tokenizer)
    with Parity(f"Reward model weights after a step, {family}", "trl.RewardTrainer",
                TOLERANCE) as parity:  # fmt: skip
        parity.tried()
        parity.compare(ours.head.weight.data, trainer.model.score.weight.data[0])
        for name, tensor in ours.model.state_dict().items():
            if not name.startswith("head."):  # the output matrix, which a classifier lacks
                parity.compare(tensor, trunk[name])
    moved = [(p - old).abs().max() for p, old in zip(ours.parameters(), before)]
    assert sum(change > LR / 2 for change in moved) > len(moved) / 2
    assert ours.head.bias.item() == 0


def from_causal(family: str, classifier: nn.Module, tokenizer) -> dict[str, torch.Tensor]:
    """The weights of a classifier's trunk under our names."""
    causal = getattr(transformers, FAMILIES[family][0])(classifier.config).to(torch.float64)
    causal.base_model.load_state_dict(classifier.base_model.state_dict())
    return from_transformers(causal).state_dict()
