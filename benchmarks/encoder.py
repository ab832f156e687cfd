"""Our BERT beside ``BertForMaskedLM``: forward, masked-LM loss, backward, on the same weights.

Both get the same batch and the same loss function, ``masked_lm_loss``, and neither has dropout.
Rows of the table: rows of full length, and rows padded on the right.
"""

import torch

from benchmarks.measure import compare, matmul_flops, table
from course_lib.models import BERT, BERTConfig, Llama, to_transformers
from course_lib.ops import IGNORE_INDEX
from course_lib.pretraining import masked_lm_loss

BATCH, TOKENS = 32, 128
MASKED = 0.15
"""Share of the tokens that are to be guessed."""


def the_encoder(base: Llama) -> BERT:
    """An encoder with the vocabulary, depth and width of the base model, random weights."""
    c = base.config
    config = BERTConfig(c.vocab_size, c.n_layer, c.n_head, c.n_embd, 4 * c.n_embd, TOKENS)
    return BERT(config, torch.Generator().manual_seed(0)).to(base.device)


def masked_batch(vocab_size: int, padded: bool) -> dict[str, torch.Tensor]:
    """Random rows; with ``padded`` their lengths run from half of TOKENS to all of it."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(4, vocab_size, (BATCH, TOKENS), generator=g)
    mask = torch.ones_like(ids)
    if padded:
        lengths = torch.randint(TOKENS // 2, TOKENS + 1, (BATCH, 1), generator=g)
        mask = (torch.arange(TOKENS) < lengths).long()
    hidden = (torch.rand(BATCH, TOKENS, generator=g) < MASKED) & mask.bool()
    return {
        "input_ids": ids.masked_fill(hidden, 3),
        "attention_mask": mask,
        "labels": ids.masked_fill(~hidden, IGNORE_INDEX),
    }


def passer(model: torch.nn.Module, batch: dict[str, torch.Tensor]):
    """A function that goes forward and backward once and returns the loss."""

    def both_ways() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = masked_lm_loss(model, batch)
        loss.backward()
        return loss.detach()

    return both_ways


def main(model: Llama, peak: float, rounds: int = 11) -> str:
    """Time both kinds of rows and return the table; ``model`` gives the shape."""
    ours = the_encoder(model)
    theirs = to_transformers(ours).eval()  # its dropout would cost it time
    rows, tokens, C = [], BATCH * TOKENS, ours.config.n_embd
    for padded in (False, True):
        batch = masked_batch(ours.config.vocab_size, padded)
        batch = {name: x.to(ours.device) for name, x in batch.items()}
        here, there = passer(ours, batch), passer(theirs, batch)
        difference = (here() - there()).abs().item()
        assert difference < 1e-4, f"the losses differ by {difference}"
        gradients = ours.embed.weight.grad, theirs.get_input_embeddings().weight.grad
        difference = (gradients[0] - gradients[1]).abs().max().item()
        assert difference < 1e-4, f"the gradients differ by {difference}"
        result = compare(here, there, rounds)
        low, high = result.quartiles
        forward = matmul_flops(ours, tokens, tokens * TOKENS) + 2 * C * C * tokens  # ``transform``
        rows.append([
            "right" if padded else "none", f"{tokens / result.seconds:,.0f}",
            f"{result.ratio:.2f}", f"{low:.2f}-{high:.2f}", "1.0",
            f"{3 * forward / result.seconds / peak:.1%}",
        ])  # fmt: skip
    head = ["padding", "tokens/s", "ratio", "quartiles", "bar", "of peak"]
    title = f"encoder forward and backward / BertForMaskedLM's, {BATCH} x {TOKENS} tokens"
    return table(title, head, rows)
