"""LoRA beside the library ``peft``, and merged LoRA beside the plain model.

Forward and backward of the same transformers model with adapters of the same weights on all linear
layers, at the same batch; the loss is the mean of next-token cross entropy. Memory is the most that
tensors take meanwhile, on top of what stands before. Merged, a layer is one product again: the bar
is the plain model's time, within 3 %, for a batch and for generation, where a layer is called for
one token at a time and what Python does shows most.
"""

import copy
import tempfile
from collections.abc import Callable

import torch

from benchmarks.measure import compare, peak_bytes, table
from course_lib.generation import generate
from course_lib.models import Llama, to_transformers
from course_lib.ops import token_logprobs
from course_lib.peft import add_lora, lora_layers, merge_lora, save_adapter

ROWS, TOKENS = 16, 64
NEW_TOKENS = 32
RANK, ALPHA = 8, 16
BAR, MERGED_BAR = 1.0, "1.00 ± .03"


def random_ids(model: torch.nn.Module) -> torch.Tensor:
    """(ROWS, TOKENS)."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(4, model.config.vocab_size, (ROWS, TOKENS), generator=g)
    return ids.to(model.device)


def with_lora(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the model with adapters whose B is not 0."""
    g = torch.Generator().manual_seed(1)
    model = add_lora(copy.deepcopy(model), RANK, ALPHA, "all-linear", generator=g)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            B = layer.lora_B["default"]
            B.copy_(torch.randn(B.shape, generator=g) * 0.02)
    return model


def their_lora(model: torch.nn.Module, ours: torch.nn.Module) -> torch.nn.Module:
    """peft's model of the same weights, read from our file."""
    import peft

    with tempfile.TemporaryDirectory() as folder:
        save_adapter(ours, folder)
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder, is_trainable=True)


def pass_of(model: torch.nn.Module, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A forward and a backward pass; returns the loss, and gradients do not add up."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()

    def run() -> torch.Tensor:
        for p in parameters:
            p.grad = None
        loss = -token_logprobs(model(input_ids=ids, use_cache=False).logits, ids).mean()
        loss.backward()
        return loss.detach()

    run.parameters = parameters
    return run


def check(ours: Callable, theirs: Callable) -> None:
    """Both have the same loss and as many trained numbers, with gradients of the same size."""
    difference = (ours() - theirs()).abs().item()
    assert difference < 1e-4, f"the losses differ by {difference}"
    sizes = [sum(p.numel() for p in run.parameters) for run in (ours, theirs)]
    assert sizes[0] == sizes[1], f"{sizes} parameters are trained"
    a, b = (torch.stack([p.grad.norm() for p in run.parameters]).norm() for run in (ours, theirs))
    assert abs(a / b - 1) < 1e-3, f"the gradients have the norms {a} and {b}"


def reading(model: torch.nn.Module, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A forward pass without gradients."""

    @torch.no_grad()
    def run() -> torch.Tensor:
        return model(ids).logits

    return run


def writing(model: torch.nn.Module, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Generation after a quarter of each row."""
    return lambda: generate(model, ids[:, : TOKENS // 4], max_new_tokens=NEW_TOKENS, temperature=0)


def main(model: Llama, peak: float, rounds: int = 11) -> str:
    """Time both and return the tables. ``peak`` is not asked: half of the products are small."""
    ids = random_ids(model)
    hf_model = to_transformers(model)
    with_ours = with_lora(hf_model)
    ours, theirs = (pass_of(m, ids) for m in (with_ours, their_lora(hf_model, with_ours)))
    check(ours, theirs)
    memory = [peak_bytes(run, model.device) / 1e6 for run in (ours, theirs)]
    result = compare(ours, theirs, rounds)
    low, high = result.quartiles
    line = [f"{ROWS * TOKENS / result.seconds:,.0f}", f"{result.ratio:.2f}",
            f"{low:.2f}-{high:.2f}", f"{BAR}", *(f"{mb:.0f}" for mb in memory)]  # fmt: skip
    head = ["tokens/s", "ratio", "quartiles", "bar", "MB ours", "MB theirs"]
    title = f"LoRA of rank {RANK}, forward and backward / peft's, {ROWS} x {TOKENS} tokens"
    tables = [table(title, head, [line])]

    plain, merged = copy.deepcopy(model).eval(), merge_lora(with_lora(model)).eval()
    lines = []
    for name, job, tokens in (("reading", reading, TOKENS), ("generation", writing, NEW_TOKENS)):
        result = compare(job(merged, ids), job(plain, ids), rounds)
        low, high = result.quartiles
        lines.append([name, f"{ROWS * tokens / result.seconds:,.0f}", f"{result.ratio:.2f}",
                      f"{low:.2f}-{high:.2f}", MERGED_BAR])  # fmt: skip
    head = ["", "tokens/s", "ratio", "quartiles", "bar"]
    return "\n".join([*tables, table("merged LoRA / the plain model", head, lines)])
