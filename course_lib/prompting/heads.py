"""Attention heads watched and switched off: which does learning from the context rest on?

Induction heads after Olsson et al., 2022.
Simplified away: replacing a head's output by its mean over texts instead of by 0; attention weights
of models other than our Llama (transformers gives them with ``output_attentions=True``).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from course_lib.models import Llama
from course_lib.models.layers import causal_mask, rotate


@contextmanager
def without_heads(
    projections: Sequence[nn.Module], heads: Iterable[tuple[int, int]], n_head: int
) -> Iterator[None]:
    """Within it, these attention heads write nothing: which of them copy from the examples?

    Args:
        projections: each layer's output matrix of attention, which reads the heads side by side:
            ``[b.attention.out for b in model.blocks]``; transformers' Llama has
            ``layer.self_attn.o_proj``.
        heads: (layer, head), counted from 0.
        n_head: heads a layer.

    Raises:
        ValueError: a head that is not there.
    """
    heads = list(heads)
    for layer, head in heads:
        if not (0 <= layer < len(projections) and 0 <= head < n_head):
            raise ValueError(
                f"There is no head {(layer, head)}: the model has {len(projections)} layers of "
                f"{n_head} heads."
            )

    def silence(head: int):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            x = inputs[0].unflatten(-1, (n_head, -1)).clone()  # (B, T, H, D)
            x[..., head, :] = 0
            return (x.flatten(-2),)

        return hook

    handles = [projections[layer].register_forward_pre_hook(silence(head))
               for layer, head in heads]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def attention_weights(model: Llama, input_ids: Tensor) -> Tensor:
    """What each head looks at, computed layer by layer: the fused attention keeps no weights.

    Args:
        input_ids: (B, T), without padding.

    Returns:
        (L, B, H, T, T): the weight that query t gives to key s; each row adds up to 1.
    """
    _, T = input_ids.shape
    x, rotary, weights = model.embed(input_ids), (model.cos[:T], model.sin[:T]), []
    hidden = ~causal_mask(T, T, input_ids.device)
    for block in model.blocks:
        attention, normed = block.attention, block.attention_norm(x)  # (B, T, C)
        q = rotate(attention.split(attention.q(normed), attention.n_head), *rotary)  # (B, H, T, D)
        k = rotate(attention.split(attention.k(normed), attention.n_kv_head), *rotary)
        k = k.repeat_interleave(attention.n_head // attention.n_kv_head, dim=1)  # (B, H, T, D)
        likeness = q @ k.transpose(2, 3) / attention.head_width**0.5  # (B, H, T, T)
        weights.append(likeness.masked_fill(hidden, float("-inf")).softmax(-1))
        x = block(x, rotary, None, None)
    return torch.stack(weights)


def induction_attention(weights: Tensor) -> Tensor:
    """How much a token looks at the token after its earlier copy: 1 is all of its attention.

    Args:
        weights: (L, B, H, 2n, 2n), of texts whose second half repeats the first.

    Returns:
        (L, H), the mean over texts and the second half's tokens but the last.

    Raises:
        ValueError: an odd number of tokens, or fewer than 4.
    """
    T = weights.shape[-1]
    if T % 2 or T < 4:
        raise ValueError(f"{T} tokens are no text of two equal halves: repeat at least two tokens.")
    query = torch.arange(T // 2, T - 1)
    return weights[..., query, query - T // 2 + 1].mean((1, 3))
