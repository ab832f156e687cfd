"""DPO beside trl's DPOTrainer: rows, losses and gradients of given log-probabilities, a whole step.

trl has no conservative DPO. It adds losses up with weights, and of its ``sigmoid`` and ``robust``,
((1 - ε) L - ε L')/(1 - 2ε) with L' of the swapped pair, 2 (1 - ε) and -(1 - 2ε) parts make
(1 - ε) L + ε L'.
"""

import random

import pytest
import torch
import transformers
from datasets import Dataset
from parity_record import Parity
from random_families import build
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from course_lib.chat import turns
from course_lib.dpo import encode_pairs, pair_loss, reference_pairs
from course_lib.models import from_transformers
from course_lib.pairs import collate_pairs
from course_lib.training import train
from course_lib.world.instructions import draw_example
from course_lib.world.tokenizer import save_tokenizer, train_tokenizer

STEPS, BATCH, BLOCK, LR, BETA, SMOOTHING = 6, 4, 128, 1e-3, 0.5, 0.1
TOLERANCE = 1e-5
FAMILIES = {"Llama": "LlamaForCausalLM", "GPT-2": "GPT2LMHeadModel"}
LOSSES = {
    "sigmoid": ({}, {"loss_type": ["sigmoid"]}),
    "label smoothing": (
        {"label_smoothing": SMOOTHING},
        {"loss_type": ["sigmoid", "robust"], "label_smoothing": SMOOTHING,
         "loss_weights": [2 * (1 - SMOOTHING), -(1 - 2 * SMOOTHING)]},
    ),
    "IPO by mean": ({"loss_type": "ipo_mean"}, {"loss_type": ["ipo"]}),
}  # fmt: skip
"""Name -> our settings, theirs."""


@pytest.fixture(scope="module")
def comparisons():
    """24 of (prompt, preferred response, other response)."""
    rng = random.Random(5)
    drawn = [draw_example(rng, rng.choice(["plural", "last", "largest"])) for _ in range(120)]
    triples = [(a.prompt, a.response, b.response) for a, b in zip(drawn[::2], drawn[1::2])]
    return [triple for triple in triples if triple[1] != triple[2]][: STEPS * BATCH]


@pytest.fixture(scope="module")
def tokenizer(comparisons, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([" ".join(triple) for triple in comparisons], 400), folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def pairs(tokenizer, comparisons):
    found, counts = encode_pairs(tokenizer, comparisons)
    assert counts.kept == counts.given == STEPS * BATCH
    return found


def model_of(family: str, tokenizer, seed: int, dtype=torch.float32):
    sizes = {"vocab_size": len(tokenizer), "layers": 2, "heads": 3, "width": 4, "inner": 20,
             "length": BLOCK, "tied": False}  # fmt: skip
    return build(getattr(transformers, FAMILIES[family]), sizes, seed).to(dtype)


def trainer_of(policy, ref, tokenizer, comparisons, folder, **changes) -> DPOTrainer:
    """trl's trainer with our loop's settings: what it would do otherwise is named here."""
    plain = {
        "bf16": False, "activation_checkpointing": False, "use_cpu": True, "beta": BETA,
        "train_sampling_strategy": "sequential", "adam_beta2": 0.95, "lr_scheduler_type": "linear",
        "max_length": BLOCK, "max_steps": STEPS, "per_device_train_batch_size": BATCH,
        "learning_rate": LR, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "dataset_num_proc": None,
    }  # fmt: skip
    dataset = Dataset.from_dict({
        "prompt": [turns(prompt) for prompt, *_ in comparisons],
        **{name: [[{"role": "assistant", "content": triple[i]}] for triple in comparisons]
           for i, name in enumerate(("chosen", "rejected"), 1)},
    })  # fmt: skip
    config = DPOConfig(str(folder), **(plain | changes))
    return DPOTrainer(policy, ref, config, train_dataset=dataset, processing_class=tokenizer)


def batches_of(ref, pairs, pad: int) -> list[dict]:
    data = reference_pairs(ref, pairs, pad)
    cuts = [slice(i, i + BATCH) for i in range(0, len(pairs), BATCH)]
    return [collate_pairs(pairs[cut], pad, (data.chosen_logps[cut], data.rejected_logps[cut]))
            for cut in cuts]  # fmt: skip


def both(family, tokenizer, comparisons, pairs, folder, dtype=torch.float32, **changes):
    """Our policy and batches, and trl's trainer; the policy is not the reference, or every pair
    would cost log 2 at first."""
    policy, ref = (model_of(family, tokenizer, seed, dtype) for seed in (0, 1))
    ours = from_transformers(policy).to(dtype)
    batches = batches_of(from_transformers(ref).to(dtype), pairs, tokenizer.pad_token_id)
    return ours, batches, trainer_of(policy, ref, tokenizer, comparisons, folder, **changes)


def their_batch(trainer: DPOTrainer, i: int = 0) -> dict:
    rows = [trainer.train_dataset[j] for j in range(i * BATCH, (i + 1) * BATCH)]
    return trainer.data_collator(rows)


# --- rows ---------------------------------------------------------------------------------------


def test_rows_and_batches_are_those_of_trl(tokenizer, comparisons, pairs, tmp_path):
    """From chats, by their tokenising; in their batch all preferred rows stand first."""
    _, batches, trainer = both("Llama", tokenizer, comparisons, pairs, tmp_path)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [tuple(row[name] for name in names) for row in trainer.train_dataset]
    assert rows == [tuple(pair) for pair in pairs]
    batch, theirs = batches[0], their_batch(trainer)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batch[name].transpose(0, 1).flatten(0, 1), theirs[name])
    learnt = (batch["labels"] != -100).transpose(0, 1).flatten(0, 1)
    assert torch.equal(learnt, theirs["completion_mask"].bool())


# --- the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradients_are_those_of_trl(
    family, loss, packed, tokenizer, comparisons, pairs, tmp_path
):
    """Of one batch, with the reference read in each step and before; gradients by name."""
    mine, yours = LOSSES[loss]
    with Parity(f"DPO {loss}{', packed' if packed else ''}, {family}, loss and gradients",
                "trl.DPOTrainer", TOLERANCE) as parity:  # fmt: skip
        for precompute in (False, True):
            ours, batches, trainer = both(family, tokenizer, comparisons, pairs, tmp_path,
                                          precompute_ref_log_probs=precompute, **yours)  # fmt: skip
            found, _ = pair_loss(BETA, packed=packed, **mine)(ours, batches[0])
            found.backward()
            theirs = trainer.compute_loss(trainer.model, their_batch(trainer))
            theirs.backward()
            parity.tried()
            parity.compare(found.detach(), theirs.detach())
            assert abs(found.item() - 0.6931) > 0.01
            gradients = gradients_of(trainer.model)
            for name, p in ours.named_parameters():
                parity.compare(p.grad, gradients[name])
            assert max(p.grad.abs().max() for p in ours.parameters()) > 0.01


def gradients_of(hf_model) -> dict[str, torch.Tensor]:
    """Gradients of a model over there under our names."""
    with torch.no_grad():
        for p in hf_model.parameters():
            p.copy_(p.grad)
    return from_transformers(hf_model).state_dict()


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precompute", [False, True])
def test_losses_are_those_of_trl_one_by_one(precompute, tokenizer, comparisons, pairs, tmp_path):
    """The same weights, data, order, optimizer and schedule: losses and all that is logged."""
    ours, batches, trainer = both("Llama", tokenizer, comparisons, pairs, tmp_path,
                                  precompute_ref_log_probs=precompute)  # fmt: skip
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    history = train(ours, batches, pair_loss(BETA), max_steps=STEPS, lr=LR, progress=False)
    assert len(history) == len(log) == STEPS
    names = {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies",
             "chosen_rewards": "rewards/chosen", "rejected_rewards": "rewards/rejected",
             "chosen_logps": "logps/chosen", "rejected_logps": "logps/rejected"}  # fmt: skip
    what = "read before" if precompute else "in each step"
    with Parity(f"DPO training, reference {what}, {STEPS} steps", "trl.DPOTrainer",
                TOLERANCE) as parity:  # fmt: skip
        parity.tried()
        for name, their_name in names.items():
            mine, yours = (torch.tensor([row[key] for row in table], dtype=torch.float64)
                           for key, table in ((name, history), (their_name, log)))  # fmt: skip
            size = yours.abs().clamp(min=1)  # log-probabilities are tens of nats, in float32
            parity.compare(mine / size, yours / size)
    assert max(row["loss"] for row in log) - min(row["loss"] for row in log) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precompute", [False, True])
def test_the_weights_after_a_step_are_those_of_trl(
    family, precompute, tokenizer, comparisons, pairs, tmp_path
):
    """Each weight by its name over there. AdamW's first step is of size lr whatever the gradient's,
    so rounding would decide the direction where the gradient is nearly 0: its ε is 1e-3 here."""
    ours, batches, trainer = both(
        family, tokenizer, comparisons, pairs, tmp_path, dtype=torch.float64, max_steps=1,
        precompute_ref_log_probs=precompute, adam_epsilon=1e-3,
    )  # fmt: skip
    before = [p.detach().clone() for p in ours.parameters()]
    trainer.train()
    optimizer = torch.optim.AdamW(ours.parameters(), LR, (0.9, 0.95), eps=1e-3, weight_decay=0.0)
    train(ours, batches[:1], pair_loss(BETA), max_steps=1, optimizer=optimizer, progress=False)
    after = from_transformers(trainer.model).state_dict()
    what = "read before" if precompute else "in each step"
    with Parity(f"DPO weights after a step, {family}, reference {what}", "trl.DPOTrainer",
                TOLERANCE) as parity:  # fmt: skip
        parity.tried()
        for name, tensor in ours.state_dict().items():
            parity.compare(tensor, after[name].to(tensor))
    moved = [(p - old).abs().max() for p, old in zip(ours.parameters(), before)]
    assert sum(change > LR / 4 for change in moved) > len(moved) / 2
