"""Bottleneck adapters: small networks in series with frozen layers (Houlsby et al., 2019).

What a sublayer puts out, h, becomes h + W_up f(W_down h), of width m in between, before it is added
to the residual stream. Unlike LoRA's update it is not linear, so it cannot be merged.
Simplified away: norms of their own, adapters in parallel, fusion of several.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from course_lib.wrapped_linear import (
    WrappedLinear,
    ends_with,
    find_linear,
    freeze,
    last_parts,
    linear_layers,
    replace,
)

ATTENTION = ("attention.out", "self_attn.o_proj", "self_attn.out_proj", "attn.c_proj",
             "self_attention.dense")  # fmt: skip
FEED_FORWARD = ("feed_forward.down", "mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h")
PLACEMENTS = {"houlsby": (*ATTENTION, *FEED_FORWARD), "pfeiffer": FEED_FORWARD}
"""Where adapters stand: behind both sublayers of a block (Houlsby et al., 2019, figure 2), or
behind the feed-forward layer alone (Pfeiffer et al., 2021, section 3.1). The names are those of the
last linear layer of a sublayer: ours, Llama's and its kin's, OPT's, GPT-2's, BLOOM's."""


def bottleneck(h: Tensor, down: nn.Linear, up: nn.Linear) -> Tensor:
    """h + W_up GELU(W_down h + b) + b': (..., C) -> (..., C).

    Args:
        down: C -> m. up: m -> C.
    """
    return h + up(F.gelu(down(h)))


class AdaptedLinear(WrappedLinear):
    """A linear layer with a bottleneck behind it, which starts as the identity: its up is 0."""

    def __init__(self, layer: nn.Module, size: int, generator: Generator | None = None):
        super().__init__(layer)
        width, like = self.out_features, {"dtype": self.weight.dtype, "device": self.weight.device}
        self.adapter_down = nn.utils.skip_init(nn.Linear, width, size, **like)
        self.adapter_up = nn.utils.skip_init(nn.Linear, size, width, **like)
        device = like["device"] if generator is None else generator.device
        start = torch.randn(size, width, generator=generator, device=device) * width**-0.5
        with torch.no_grad():
            self.adapter_down.weight.copy_(start)
            for zero in (self.adapter_down.bias, self.adapter_up.weight, self.adapter_up.bias):
                zero.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out = self.linear(x)
        return bottleneck(out, self.adapter_down, self.adapter_up) if self.enabled else out


def add_adapters(
    model: nn.Module, size: int, target_modules: str | Sequence[str] | None = None, *,
    placement: str = "houlsby", generator: Generator | None = None,
) -> nn.Module:  # fmt: skip
    """Put a bottleneck adapter behind linear layers of a model, in place; all else is frozen.

    Args:
        model: one of ours, or any module with linear layers.
        size: m, the width of the bottleneck: an adapter has 2 C m + m + C parameters.
        target_modules: the layers behind which they stand, see ``wrapped_linear.find_linear``; the
            ``placement``'s when None.
        placement: one of ``PLACEMENTS``.
        generator: draws the first weights; torch's own when None.

    Returns:
        The model itself.

    Raises:
        ValueError: a size below 1, another placement, layers that are not there.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r} must be a whole number of at least 1: it is a width.")
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, got {placement!r}.")
    if target_modules is None:
        names = linear_layers(model)
        target_modules = [n for n in names if any(ends_with(n, t) for t in PLACEMENTS[placement])]
        if not target_modules:
            raise ValueError(
                f"Which layers end the sublayers of {type(model).__name__}? Name them in "
                f"target_modules; its linear layers end in {last_parts(names) or '(none)'}."
            )
    layers = find_linear(model, target_modules)
    if wrapped := [name for name, layer in layers.items() if isinstance(layer, WrappedLinear)]:
        raise ValueError(f"{wrapped[0]} has LoRA or an adapter already: take other layers.")
    freeze(model)
    for name, layer in layers.items():
        adapted = replace(model, name, AdaptedLinear(layer, size, generator))
        for part in (adapted.adapter_down, adapted.adapter_up):
            part.requires_grad_(True)
    return model
