"""What is trained of a model, and how much it is."""

import pytest
import torch
import transformers
from random_families import build
from random_models import llama
from torch import nn

from course_lib import peft
from course_lib.models import BLOOM, BLOOMConfig, WithScalarHead
from course_lib.ops import token_logprobs
from course_lib.peft import (
    Counts,
    add_adapters,
    add_lora,
    add_soft_prompt,
    count_parameters,
    freeze_except,
    memory,
    summary_table,
)
from course_lib.training import train

SIZES = {"vocab_size": 13, "layers": 2, "heads": 2, "width": 4, "inner": 9, "length": 16,
         "tied": True}  # fmt: skip
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def bloom() -> BLOOM:
    return BLOOM(BLOOMConfig(13, 3, 2, 8), torch.Generator().manual_seed(0))


def gpt2(kind: str = "GPT2LMHeadModel", **changes) -> nn.Module:
    return build(getattr(transformers, kind), SIZES | changes, 0)


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_every_public_name_is_there():
    for name in peft.__all__:
        assert getattr(peft, name).__doc__, name


# --- selective ----------------------------------------------------------------------------------


def test_parts_of_our_model_by_hand():
    """BLOOM, C 8, three blocks: embeddings 13 · 8 = 104; norms 2 · 8 = 16 each, 1 + 2 · 3 + 1 of
    them: 128; biases of a block 4 · 8 + 32 + 8 + 2 · 8 = 88, 264 in all, and 16 of the other two
    norms: 280. All: 104 + 128 + 3 · (12 · 64 + 72) = 104 + 128 + 2520 = 2752."""
    parts = {"embeddings": 104, "norms": 128, "biases": 280}
    for part, n in parts.items():
        assert count_parameters(freeze_except(bloom(), part)) == (n, 2752)
    both = count_parameters(freeze_except(bloom(), "embeddings", "biases"))
    assert both == (104 + 280, 2752)
    norms_and_biases = freeze_except(bloom(), "norms", "biases")  # norms' biases count once
    assert count_parameters(norms_and_biases).trained == 280 + 64


def test_last_layers_by_hand():
    """A block of BLOOM: 12 · 64 + 72 + 2 · 16 = 872."""
    for k in (1, 2, 3):
        model = freeze_except(bloom(), last_layers=k)
        assert count_parameters(model).trained == 872 * k
        assert {n.split(".")[1] for n in trained(model)} == {*"012"[3 - k :]}
    model = freeze_except(bloom(), "embeddings", last_layers=1)
    assert count_parameters(model).trained == 104 + 872


def test_last_layers_over_there_and_of_both_stacks():
    assert {n[:14] for n in trained(freeze_except(gpt2(), last_layers=1))} == {"transformer.h."}
    assert all(".h.1." in n for n in trained(freeze_except(gpt2(), last_layers=1)))
    t5 = freeze_except(gpt2("T5ForConditionalGeneration"), last_layers=1)
    assert {n[:15] for n in trained(t5)} == {"encoder.block.1", "decoder.block.1"}
    wrapped = freeze_except(WithScalarHead(llama()), "head", last_layers=1)
    assert {"head.weight", "head.bias", "model.blocks.1.attention.q.weight"} <= trained(wrapped)


def test_the_head_and_what_is_tied_to_the_embeddings():
    """Untied, the head is a part of its own; tied, it is the embeddings, which count once."""
    assert trained(freeze_except(llama(tie_embeddings=False), "head")) == {"head.weight"}
    model = freeze_except(gpt2(), "embeddings")
    assert trained(model) == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert model.lm_head.weight.requires_grad
    assert trained(freeze_except(gpt2(), "head")) == {"transformer.wte.weight"}


def test_a_pattern_is_for_whole_names():
    model = freeze_except(llama(), r"blocks\.1\..*\.(q|v)\.weight")
    assert trained(model) == {f"blocks.1.attention.{part}.weight" for part in "qv"}
    model = freeze_except(add_lora(llama(), 2, 4, ["q"]), r".*\.lora_[AB]\..*", "norms")
    names = trained(model)
    assert len(names) == 4 + 5 and sum("lora_" in n for n in names) == 4


def test_a_table_of_relative_positions_is_no_bias():
    """T5's ``relative_attention_bias.weight``; its linear layers have no biases at all."""
    with pytest.raises(ValueError, match="'biases' matches no parameter"):
        freeze_except(gpt2("T5ForConditionalGeneration"), "biases")
    bert = freeze_except(gpt2("BertForMaskedLM"), "biases")
    assert trained(bert) == {n for n, _ in bert.named_parameters() if n.endswith("bias")}


@pytest.mark.parametrize(
    ("parts", "settings", "message"),
    [
        ((), {}, "Name what is trained: biases, norms, embeddings, head"),
        (("biases",), {}, "'biases' matches no parameter of Llama. It has norms, embeddings; "),
        (("head",), {}, "'head' matches no"),
        (("q",), {}, "whole names, which end in weight, such as 'embed.weight'"),
        (("norms", "q"), {}, "'q' matches no"),
        ((), {"last_layers": 3}, "last_layers=3: expected 1 to 2, the blocks of Llama"),
        ((), {"last_layers": -1}, "last_layers=-1"),
        (("norms",), {"last_layers": 1.5}, "last_layers=1.5"),
    ],
)
def test_what_is_not_there_is_refused_and_changes_nothing(parts, settings, message):
    model = llama()
    with pytest.raises(ValueError, match=message):
        freeze_except(model, *parts, **settings)
    assert trained(model) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("part", ["biases", "norms", "embeddings", "last"])
def test_what_is_frozen_stays_bit_for_bit(part):
    model = gpt2()
    freeze_except(model, last_layers=1) if part == "last" else freeze_except(model, part)
    before = {n: p.clone() for n, p in model.named_parameters()}

    def loss_fn(model, batch):
        return -token_logprobs(model(batch["input_ids"]).logits, batch["input_ids"]).mean()

    train(model, [{"input_ids": IDS}] * 2, loss_fn, max_steps=2, lr=0.01, progress=False)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= trained(model) and len(moved) >= len(trained(model)) - 1
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained(model))


# --- counting -----------------------------------------------------------------------------------


def test_the_lecture_s_example():
    """d 512, k 64, r 8: 512 · 8 + 8 · 64 = 4,608 beside 32,768, a share of 9/64 of W's; of all that
    is there then, 9/73."""
    model = add_lora(nn.Sequential(nn.Linear(64, 512, bias=False)), 8, 16, ["0"])
    counts = count_parameters(model)
    assert counts == Counts(4608, 32768 + 4608) and counts.share == pytest.approx(9 / 73)
    assert counts.trained / (512 * 64) == 9 / 64


def test_every_method_counts_what_it_adds():
    """Llama of C 24 with two blocks; r 1 on q: 48 each; adapters of 2 at down: 2 · 24 · 2 + 26;
    five vectors of 24."""
    added = {
        "LoRA": (add_lora(llama(), 1, 1, ["q"]), 2 * 48),
        "adapters": (add_adapters(llama(), 2, ["down"]), 2 * 122),
        "prompt": (add_soft_prompt(llama(), 5), 120),
    }
    whole = count_parameters(llama())
    assert whole.trained == whole.all and whole.share == 1
    for model, n in added.values():
        assert count_parameters(model) == (n, whole.all + n)


def test_bytes_are_those_of_the_tensors_themselves():
    """Of a step of AdamW: weights, gradients, two states a weight, but for its counters."""
    for model in (freeze_except(bloom(), "norms"), add_lora(bloom().bfloat16(), 2, 4, ["q"])):
        rows = model(IDS).logits.float().square().mean()
        rows.backward()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        optimizer.step()

        def size(tensors) -> int:
            return sum(x.numel() * x.element_size() for x in tensors)

        found = memory(model)
        assert found.weights == size(model.parameters())
        assert found.gradients == size(p.grad for p in model.parameters() if p.grad is not None)
        states = [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
        assert found.optimizer == size(states) == memory(model, 1).optimizer * 2


def test_the_table_by_hand():
    """999 · 1000 + 1000 weights: 4.0 MB; of 1000 that are trained .004 MB, and twice that."""
    full = nn.Linear(999, 1000)
    table = summary_table({"full": full, "biases": freeze_except(nn.Linear(999, 1000), "biases")})
    assert [line.split() for line in table.splitlines()] == [
        "trained all share weights gradients optimizer".split(),
        "full 1,000,000 1,000,000 100.0% 4.0 MB 4.0 MB 8.0 MB".split(),
        "biases 1,000 1,000,000 0.1% 4.0 MB 0.0 MB 0.0 MB".split(),
    ]
    assert len({len(line) for line in table.splitlines()}) == 1
