"""A training step of our Llama beside ``LlamaForCausalLM``: forward, loss, backward, AdamW.

Both get the same optimizer and the same loss function, ``causal_lm_loss``. Theirs is timed once
more with the loss it computes itself from ``labels``.
"""

import copy

import torch

from benchmarks.measure import compare, matmul_flops, table
from course_lib.models import Llama, to_transformers
from course_lib.pretraining import causal_lm_loss

BATCH, TOKENS = 32, 256


def own_loss(hf_model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return hf_model(**batch, labels=batch["input_ids"]).loss


def stepper(model: torch.nn.Module, batch: dict[str, torch.Tensor], loss_fn=causal_lm_loss):
    """A function that does one training step on the batch and returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> torch.Tensor:
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def main(model: Llama, peak: float, rounds: int = 11) -> str:
    """Time the steps and return the table."""
    model = copy.deepcopy(model).train()
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (BATCH, TOKENS), generator=g)
    batch = {"input_ids": ids.to(model.device)}
    rows = []
    for name, loss_fn in (("the same loss", causal_lm_loss), ("its own loss", own_loss)):
        hf_model = to_transformers(model).train()
        ours, theirs = stepper(model, batch), stepper(hf_model, batch, loss_fn)
        difference = (ours() - theirs()).abs().item()
        assert difference < 1e-4, f"the first losses differ by {difference}"
        result = compare(ours, theirs, rounds)
        low, high = result.quartiles
        flops = 3 * matmul_flops(model, BATCH * TOKENS, BATCH * TOKENS * (TOKENS + 1) // 2)
        rows.append([
            name, f"{BATCH * TOKENS / result.seconds:,.0f}", f"{result.ratio:.2f}",
            f"{low:.2f}-{high:.2f}", "1.0", f"{flops / result.seconds / peak:.1%}",
        ])  # fmt: skip
    head = ["LlamaForCausalLM with", "tokens/s", "ratio", "quartiles", "bar", "of peak"]
    return table(f"training step / LlamaForCausalLM's, {BATCH} x {TOKENS} tokens", head, rows)
