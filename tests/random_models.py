"""Random tiny Llamas, padded batches and rows, for the tests that compare with transformers."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from course_lib.models import Llama, LlamaConfig
from course_lib.ops import IGNORE_INDEX


def llama(seed: int = 0, **changes) -> Llama:
    """A model whose weights are large enough for every part to show in the logits.

    Matrices are N(0, 1/inputs), norm weights uniform in 0.5..1.5, which gives logits a standard
    deviation of about 1: with the usual first weights, N(0, 0.02²) and ones, attention is flat,
    norms can be swapped, and all logits are near 0.
    """
    shape = {"vocab_size": 13, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 24,
             "n_inner": 20, "block_size": 16}  # fmt: skip
    model = Llama(LlamaConfig(**{**shape, **changes}))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=p.shape[1] ** -0.5, generator=g)
            else:
                p.uniform_(0.5, 1.5, generator=g)
    return model.eval()


@st.composite
def configs(draw) -> dict:
    """Fields of a LlamaConfig: odd head counts, grouped heads, both kinds of output matrix."""
    n_kv_head, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    n_head = n_kv_head * group
    return {
        "vocab_size": draw(st.integers(2, 23)),
        "n_layer": draw(st.integers(1, 3)),
        "n_head": n_head,
        "n_kv_head": n_kv_head,
        "n_embd": n_head * draw(st.sampled_from([2, 4, 6, 10])),
        "n_inner": draw(st.integers(1, 33)),
        "block_size": draw(st.integers(12, 20)),
        "rope_theta": draw(st.sampled_from([3.0, 100.0, 10000.0, 500000.0])),
        "norm_eps": draw(st.sampled_from([1e-6, 1e-5, 0.1])),
        "tie_embeddings": draw(st.booleans()),
    }


@st.composite
def llamas(draw) -> Llama:
    return llama(draw(st.integers(0, 2**16)), **draw(configs()))


@st.composite
def batches(draw, vocab_size: int, max_length: int = 12) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, (B, T): each row padded on the left, on the right, or both, or
    with a hole in the middle.

    Every row keeps one token at least; the ids of padding are random too, for they must not matter.
    """
    B, T = draw(st.integers(1, 3)), draw(st.integers(1, max_length))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    input_ids = torch.randint(0, vocab_size, (B, T), generator=g)
    attention_mask = torch.ones(B, T, dtype=torch.long)
    for row in attention_mask:
        left = draw(st.integers(0, T - 1))
        right = draw(st.integers(0, T - 1 - left))
        row[:left] = 0
        row[T - right :] = 0
        if T - left - right > 2 and draw(st.booleans()):
            row[draw(st.integers(left + 1, T - right - 2))] = 0
    return input_ids, attention_mask


def positions(attention_mask: Tensor) -> Tensor:
    """Each row counts its kept tokens from 0 on; padding gets 0 or the last count. (B, T)."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def compact(attention_mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The mask and other (B, T) tensors with each row's kept tokens at its start, in their order.

    Where positions follow the mask, ``logits[mask.bool()]`` of both batches are the same.
    """
    order = (~attention_mask.bool()).int().argsort(dim=1, stable=True)
    return tuple(x.gather(1, order) for x in (attention_mask, *tensors))


def chunks(length: int, cuts: set[int]) -> list[tuple[int, int]]:
    """Starts and ends of the pieces: chunks(5, {2}) is [(0, 2), (2, 5)]."""
    bounds = [0, *sorted(c for c in cuts if 0 < c < length), length]
    return list(zip(bounds, bounds[1:], strict=False))


@st.composite
def row_lists(draw, vocab_size: int = 13, longest: int = 7) -> list[dict]:
    """Rows of two to seven tokens, the labels on the last of them, at least on one."""
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(0, vocab_size - 1), min_size=2, max_size=longest))
        prompt = draw(st.integers(1, len(ids) - 1))
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:]})
    return rows


@st.composite
def ranking_lists(draw, vocab_size: int = 13, longest: int = 7) -> list[list[tuple[list, int]]]:
    """Up to four rankings of two to five rows each, as (row, rank): no two rows of a ranking are
    the same, some tie, not all do."""
    row = st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=longest)
    rankings = []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(st.lists(row, min_size=2, max_size=5, unique_by=tuple))
        ranks = draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
        if len(set(ranks)) == 1:
            ranks[draw(st.integers(0, len(rows) - 1))] += 1
        rankings.append(list(zip(rows, ranks, strict=True)))
    return rankings
