"""Attention heads switched off: which of them does learning from the context rest on?

Simplified away: replacing a head's output by its mean over texts instead of by 0.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


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
