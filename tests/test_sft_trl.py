"""Fine-tuning beside trl: the same tokens, masks, packed rows and loss curve."""

import copy

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_record import Parity
from random_models import llama
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from course_lib.chat import encode_chat, turns
from course_lib.models import to_transformers
from course_lib.rows import batches, collate, pack
from course_lib.sft import sft_loss
from course_lib.training import train
from course_lib.world.instructions import draw_example
from course_lib.world.tokenizer import save_tokenizer, train_tokenizer

STEPS, BATCH, BLOCK, LR = 50, 4, 128, 5e-3
TOLERANCE = 1e-4  # on losses of 2 to 6 nats, over 50 steps of AdamW in fp32


@pytest.fixture(scope="module")
def pairs():
    """200 short examples of three tasks, (prompt, response)."""
    import random

    rng = random.Random(5)
    drawn = [draw_example(rng, rng.choice(["plural", "last", "largest"])) for _ in range(200)]
    return [(example.prompt, example.response) for example in drawn]


@pytest.fixture(scope="module")
def tokenizer(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([f"{a} {b}" for a, b in pairs], 400), folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def rows(tokenizer, pairs):
    return [encode_chat(tokenizer, turns(*pair)) for pair in pairs]


def trainer_of(model, tokenizer, pairs, folder, **changes) -> SFTTrainer:
    """trl's trainer with our loop's settings: what it would do otherwise is named here."""
    dataset = Dataset.from_list([
        {"prompt": turns(prompt), "completion": [{"role": "assistant", "content": response}]}
        for prompt, response in pairs
    ])  # fmt: skip
    plain = {
        "bf16": False, "activation_checkpointing": False, "use_cpu": True,
        "train_sampling_strategy": "sequential", "adam_beta2": 0.95, "lr_scheduler_type": "linear",
        "max_length": BLOCK, "max_steps": STEPS, "per_device_train_batch_size": BATCH,
        "learning_rate": LR, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "dataset_num_proc": None,
    }  # fmt: skip
    config = SFTConfig(output_dir=str(folder), **(plain | changes))
    return SFTTrainer(model, config, train_dataset=dataset, processing_class=tokenizer)


def losses_of(trainer: SFTTrainer) -> torch.Tensor:
    trainer.train()
    return torch.tensor([row["loss"] for row in trainer.state.log_history if "loss" in row])


def ours(model, stream) -> torch.Tensor:
    history = train(model, stream, sft_loss, max_steps=STEPS, lr=LR, mixed_precision="no",
                    progress=False)  # fmt: skip
    return torch.tensor([row["loss"] for row in history])


# --- tokens, masks, rows ------------------------------------------------------------------------


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_tokens_and_masks_are_those_of_trl(tokenizer, pairs, rows, tmp_path, mask_prompt):
    """``completion_only_loss`` is their name of the prompt mask."""
    model = to_transformers(llama(vocab_size=len(tokenizer), block_size=BLOCK))
    trainer = trainer_of(model, tokenizer, pairs, tmp_path, completion_only_loss=mask_prompt)
    theirs = next(iter(trainer.get_train_dataloader()))
    batch = collate(rows[:BATCH], tokenizer.pad_token_id, mask_prompt)
    assert batch.keys() == theirs.keys()
    for name, tensor in batch.items():
        assert torch.equal(tensor, theirs[name]), name
    assert len(trainer.train_dataset) == len(rows)
    for row, their_row in zip(rows, trainer.train_dataset, strict=True):
        assert row["input_ids"] == their_row["input_ids"]
        assert row["labels" if mask_prompt else "input_ids"] == their_row["labels"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 14), min_size=1, max_size=12), st.integers(3, 12))
def test_packed_rows_are_those_of_trl(lengths, block_size):
    """Row by row and in the same order; positions and labels by trl's collator, row by row."""
    rows = [{"input_ids": list(range(100 * i, 100 * i + n)), "labels": list(range(n))}
            for i, n in enumerate(lengths)]  # fmt: skip
    theirs = pack_dataset(Dataset.from_list(rows), block_size, "bfd")
    packed = pack(rows, block_size)
    assert [row["input_ids"] for row in packed] == theirs["input_ids"][:]
    flatten = DataCollatorForLanguageModeling(pad_token_id=1, padding_free=True)
    for row, their_row in zip(packed, theirs, strict=True):
        batch, their_batch = collate([row], pad_id=1), flatten([their_row])
        for name in ("input_ids", "labels", "position_ids"):
            assert torch.equal(batch[name], their_batch[name]), name


# --- the loss curve -----------------------------------------------------------------------------


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_the_loss_curve_is_that_of_trl(tokenizer, pairs, rows, tmp_path, mask_prompt):
    """The same weights, data, order, optimizer and schedule: 50 losses, one by one."""
    model = llama(vocab_size=len(tokenizer), block_size=BLOCK)
    what = "responses" if mask_prompt else "whole chats"
    with Parity(f"SFT on {what}, 50 losses", "trl.SFTTrainer", TOLERANCE) as parity:
        parity.tried()
        theirs = losses_of(trainer_of(to_transformers(model), tokenizer, pairs, tmp_path,
                                      completion_only_loss=mask_prompt))  # fmt: skip
        stream = batches(rows, BATCH, tokenizer.pad_token_id, block_size=BLOCK,
                         mask_prompt=mask_prompt)  # fmt: skip
        curve = ours(model, stream)
        assert len(curve) == STEPS and curve[-5:].mean() < 0.8 * curve[:5].mean()
        parity.compare(curve, theirs)


def test_the_loss_curve_on_packed_rows_is_that_of_trl(tokenizer, pairs, rows, tmp_path):
    """trl puts the packed rows of a batch end to end into one, we below each other."""
    model = llama(vocab_size=len(tokenizer), block_size=BLOCK)
    packed = pack(rows, BLOCK)
    assert len(packed) < len(rows) / 2
    with Parity("SFT on packed rows, 50 losses", "trl.SFTTrainer", TOLERANCE) as parity:
        parity.tried()
        theirs = losses_of(trainer_of(
            to_transformers(model), tokenizer, pairs, tmp_path, packing=True, max_length=BLOCK,
            per_device_train_batch_size=2, shuffle_dataset=False,
        ))  # fmt: skip
        order = [packed[i : i + 2] for i in range(0, len(packed), 2)]
        stream = [collate(order[i % len(order)], tokenizer.pad_token_id) for i in range(STEPS)]
        parity.compare(ours(copy.deepcopy(model), stream), theirs)


def test_accumulated_steps_are_those_of_trl(tokenizer, pairs, rows, tmp_path):
    """Four examples a step, one at a time, with 2 to some 20 response tokens: loss and norm of the
    gradient. trl divides by the tokens of the step (``num_items_in_batch``); the mean of the means
    is off by more than ten times the tolerance."""
    model, steps, parts = llama(vocab_size=len(tokenizer), block_size=BLOCK), 10, 4
    stream = list(batches(rows[: steps * parts], 1, tokenizer.pad_token_id, block_size=BLOCK))
    with Parity("SFT accumulated, losses and gradient norms", "trl.SFTTrainer",
                TOLERANCE) as parity:  # fmt: skip
        parity.tried()
        trainer = trainer_of(
            to_transformers(model), tokenizer, pairs, tmp_path, max_steps=steps,
            per_device_train_batch_size=1, gradient_accumulation_steps=parts,
        )  # fmt: skip
        trainer.train()
        log = [row for row in trainer.state.log_history if "loss" in row]
        means = [sum(sft_loss(model, b).item() for b in stream[i : i + parts]) / parts
                 for i in range(0, len(stream), parts)]  # fmt: skip
        first = abs(means[0] - log[0]["loss"])
        history = train(model, stream, sft_loss, max_steps=steps, lr=LR,
                        gradient_accumulation=parts, progress=False)  # fmt: skip
        assert first > 10 * TOLERANCE
        for name in ("loss", "grad_norm"):
            ours_and_theirs = [[row[name] for row in table] for table in (history, log)]
            parity.compare(*map(torch.tensor, ours_and_theirs))
