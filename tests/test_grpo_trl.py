"""GRPO beside trl's GRPOTrainer: advantages, the loss and its gradients on identical rollouts.

Their loss reads a batch of prompts and completions apart. What is compared is that of
``compute_loss``, on log-probabilities of another policy, so that ratios are clipped. It gives the
model no positions, so GPT-2, which adds them up, would count the padding before a short prompt: its
prompts have one length here, and Llama's do not. The KL in their loss is k3 times the ratio by
default (``use_bias_correction_kl``), in the paper k3 alone.
"""

import pytest
import torch
from datasets import Dataset
from parity_record import Parity
from random_families import build
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from course_lib.grpo import GRPOSettings, group_advantages, grpo_loss
from course_lib.live_rollouts import read_responses
from course_lib.models import from_transformers
from course_lib.ops import IGNORE_INDEX
from course_lib.rollout import rollout

TOLERANCE = 1e-5
GROUPS, SIZE, ROOM, END, V = 3, 4, 7, 0, 13
FAMILIES = {"Llama": LlamaForCausalLM, "GPT-2": GPT2LMHeadModel}
LOSS_TYPES = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}
OPTIONS = {
    "alone": {},
    "with more room upwards": {"clip_eps_high": 0.28},
    "with the KL": {"kl_loss_coef": 0.3},
    "with the KL times the ratio": {"kl_loss_coef": 0.3, "kl_corrected": True},
}


def model_pair(family: str, seed: int):
    """Our model and theirs, with the same random weights."""
    sizes = {"vocab_size": V, "layers": 2, "heads": 2, "width": 4, "inner": 9, "length": 32,
             "tied": False}  # fmt: skip
    hf_model = build(FAMILIES[family], sizes, seed)
    return from_transformers(hf_model), hf_model


def trainer_of(hf_model, folder, **changes) -> GRPOTrainer:
    """trl's trainer with our names' settings; it neither samples nor steps here."""
    words = {f"w{i}": i for i in range(V)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(tokenizer_models.WordLevel(words, unk_token="w1")),
        eos_token="w0", pad_token="w0",
    )  # fmt: skip
    plain = {
        "bf16": False, "use_cpu": True, "report_to": "none", "activation_checkpointing": False,
        "per_device_train_batch_size": GROUPS * SIZE, "num_generations": SIZE, "beta": 0.0,
        "max_completion_length": ROOM, "epsilon": 0.2, "disable_dropout": True,
    }  # fmt: skip
    trainer = GRPOTrainer(
        hf_model, lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(str(folder), **(plain | changes)), processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["w1 w2"] * (GROUPS * SIZE)}),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # their loop sets it
    return trainer


PROMPTS = {"Llama": ([3, 1, 4], [1, 5], [9, 2, 6, 5, 8]),
           "GPT-2": ([3, 1, 4], [1, 5, 2], [9, 2, 6])}  # fmt: skip


def rollouts(model, prompts, seed: int = 0) -> dict:
    """Responses of the model, their log-probabilities by two others, and scores; one group is
    dead, some responses are cut off."""
    g = torch.Generator().manual_seed(seed)
    prompts = [row for row in prompts for _ in range(SIZE)]
    batch = rollout(model, prompts, max_new_tokens=ROOM, eos_token_id=END, generator=g)
    assert 0 < batch["ended"].sum() < len(prompts)
    batch["response_mask"] = batch["labels"][:, 1:] != IGNORE_INDEX
    noise = torch.randn((2, *batch["response_mask"].shape), generator=g)
    with torch.no_grad():
        logprobs = read_responses(model, batch)[0]
    for name, part in zip(("old_logprobs", "ref_logprobs"), noise):
        batch[name] = (logprobs + 0.3 * part) * batch["response_mask"]
    scores = torch.rand(len(prompts), generator=g)
    scores[:SIZE] = 0.7
    return batch | {"scores": scores, "advantages": group_advantages(scores, SIZE)}


def their_batch(batch: dict) -> dict:
    """The same rollouts as their trainer hands them to its loss."""
    P = int((batch["labels"] != IGNORE_INDEX).int().argmax(1).min())
    mask = batch["attention_mask"]
    return {
        "prompt_ids": batch["input_ids"][:, :P], "prompt_mask": mask[:, :P],
        "completion_ids": batch["input_ids"][:, P:], "completion_mask": mask[:, P:],
        "advantages": batch["advantages"], "num_items_in_batch": batch["response_mask"].sum(),
        "old_per_token_logps": batch["old_logprobs"][:, P - 1 :],
        "ref_per_token_logps": batch["ref_logprobs"][:, P - 1 :],
    }  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def sides(request, tmp_path_factory):
    """Family, our model, their trainer, the rollouts, and their model's weights."""
    ours, theirs = model_pair(request.param, 0)
    batch = rollouts(ours, PROMPTS[request.param])
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    return (request.param, ours, trainer_of(theirs, tmp_path_factory.mktemp("trl")), batch, before)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients_are_those_of_trl(loss_type, option, sides, monkeypatch):
    """Their losses' names and ours; gradients of every weight, by its name over there."""
    family, ours, trainer, batch, before = sides
    changes = OPTIONS[option]
    for name, value in {"loss_type": loss_type, "beta": changes.get("kl_loss_coef", 0.0),
                        "epsilon_high": changes.get("clip_eps_high", 0.2)}.items():  # fmt: skip
        assert hasattr(trainer, name)
        monkeypatch.setattr(trainer, name, value)
    corrected = changes.get("kl_corrected", False)
    monkeypatch.setattr(trainer.args, "use_bias_correction_kl", corrected)
    trainer.model.load_state_dict(before)
    ours.zero_grad(), trainer.model.zero_grad(), trainer._metrics["train"].clear()
    given_settings = GRPOSettings(ROOM, GROUPS * SIZE, SIZE, normalise=LOSS_TYPES[loss_type],
                                  **changes)  # fmt: skip
    loss, metrics = grpo_loss(given_settings)(ours, batch)
    loss.backward()
    assert 0.05 < metrics["clipfrac"] < 0.95
    their_loss = trainer.compute_loss(trainer.model.train(), their_batch(batch))
    their_loss.backward()
    grads = grads_by_our_names(trainer.model)
    with Parity(f"GRPO loss and gradients, {loss_type} {option}, {family}", "trl.GRPOTrainer",
                TOLERANCE) as parity:  # fmt: skip
        parity.tried()
        parity.compare(loss.detach(), their_loss.detach())
        for name, p in ours.named_parameters():
            parity.compare(p.grad, grads[name].detach())
    assert max(p.grad.abs().max() for p in ours.parameters()) > 1e-2
    if "kl_loss_coef" in changes:
        kl = trainer._metrics["train"]["kl"][0]
        assert metrics["kl_loss"].item() == pytest.approx(kl, abs=TOLERANCE)


def grads_by_our_names(hf_model) -> dict[str, torch.Tensor]:
    """Their gradients, carried over as weights are."""
    with torch.no_grad():
        for p in hf_model.parameters():
            p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
    return dict(from_transformers(hf_model).named_parameters())


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_are_those_of_trl(scale, tmp_path, monkeypatch):
    """Bessel's deviation and 1e-4 added to it, or none: from scores to advantages through their
    whole sampling, in their order of groups. A dead group has none either way."""
    ours, theirs = model_pair("Llama", 1)
    scores = rollouts(ours, PROMPTS["Llama"], 1)["scores"]
    trainer = trainer_of(theirs, tmp_path, scale_rewards=scale)
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *args: scores[:, None])
    inputs = [{"prompt": f"w{i} w2"} for i in (3, 4, 5) for _ in range(SIZE)]
    found = trainer._generate_and_score_completions(inputs)["advantages"]
    std = "bessel" if scale == "group" else None
    with Parity(f"Group advantages, scaled by {scale}", "trl.GRPOTrainer", TOLERANCE) as parity:
        parity.tried()
        parity.compare(group_advantages(scores, SIZE, std, eps=1e-4), found)
    assert not found[:SIZE].any() and found[SIZE:].abs().min() > 1e-3
