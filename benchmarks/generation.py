"""``course_lib.generate`` beside ``transformers.generate``: the same weights, prompts, lengths.

Rows of the table: greedy and sampled, prompts of one length and prompts padded on the left.
"""

import torch

from benchmarks.measure import Comparison, compare, matmul_flops, table
from course_lib.generation import generate
from course_lib.models import Llama, to_transformers

PROMPT_TOKENS, NEW_TOKENS = 32, 32
BARS = {1: 1.4, 32: 1.4, 256: 2.0}
"""Batch size -> the ratio we hold ourselves to."""


def prompts(model: Llama, batch: int, padded: bool) -> dict[str, torch.Tensor]:
    """Random prompts; with ``padded`` their lengths run from half of PROMPT_TOKENS to all of it."""
    g = torch.Generator().manual_seed(batch)
    ids = torch.randint(4, model.config.vocab_size, (batch, PROMPT_TOKENS), generator=g)
    mask = torch.ones_like(ids)
    if padded:
        lengths = torch.randint(PROMPT_TOKENS // 2, PROMPT_TOKENS + 1, (batch, 1), generator=g)
        mask = (torch.arange(PROMPT_TOKENS) >= PROMPT_TOKENS - lengths).long()
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def one(model: Llama, hf_model, batch: int, padded: bool, sampled: bool, rounds: int) -> Comparison:
    """Time one setting. Greedy outputs are compared first: a wrong answer has no speed."""
    inputs = prompts(model, batch, padded)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0} if sampled else {}

    def ours() -> torch.Tensor:
        return generate(
            model, **inputs, max_new_tokens=NEW_TOKENS, temperature=1.0 if sampled else 0.0
        )

    def theirs() -> torch.Tensor:
        return hf_model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=None, eos_token_id=None,
            pad_token_id=0, **(settings or {"do_sample": False}),
        )  # fmt: skip

    a, b = ours(), theirs()
    assert a.shape == b.shape == (batch, PROMPT_TOKENS + NEW_TOKENS)
    if not sampled:
        agree = (a == b).all(1).float().mean().item()  # near-ties may fall either way
        assert agree > 0.97, f"only {agree:.0%} of the greedy rows agree"
    return compare(ours, theirs, rounds)


def main(model: Llama, peak: float, rounds: int = 11) -> str:
    """Measure every setting and return the table."""
    hf_model = to_transformers(model).eval()
    rows = []
    for batch, bar in BARS.items():
        for padded in (False, True) if batch > 1 else (False,):
            for sampled in (False, True):
                result = one(model, hf_model, batch, padded, sampled, rounds)
                read = PROMPT_TOKENS + NEW_TOKENS - 1  # the last new token is never read
                attended = batch * read * (read + 1) // 2
                flops = matmul_flops(model, batch * read, attended, scored=batch * NEW_TOKENS)
                low, high = result.quartiles
                rows.append([
                    str(batch), "left" if padded else "none", "sampled" if sampled else "greedy",
                    f"{batch * NEW_TOKENS / result.seconds:,.0f}", f"{result.ratio:.2f}",
                    f"{low:.2f}-{high:.2f}", f"{bar:.1f}",
                    f"{flops / result.seconds / peak:.1%}",
                ])  # fmt: skip
    head = ["batch", "padding", "choice", "tokens/s", "ratio", "quartiles", "bar", "of peak"]
    return table(f"generate / transformers.generate, {NEW_TOKENS} new tokens", head, rows)
