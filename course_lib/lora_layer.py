"""A linear layer with low-rank updates beside it, and the pure pieces of LoRA.

Equations of Hu et al. (2022), "LoRA: Low-Rank Adaptation of Large Language Models". ``lora`` has
what works on whole models, and what to look out for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from course_lib.wrapped_linear import WrappedLinear

# --- the pure pieces ----------------------------------------------------------------------------


def lora_scaling(r: int, lora_alpha: float, use_rslora: bool = False) -> float:
    """s = alpha / r (Hu et al., 2022, section 4.1), or alpha / √r, which keeps the size of the
    output where r grows (Kalajdzievski, 2023, equation 4).

    Example:
        >>> lora_scaling(4, 8), lora_scaling(4, 8, use_rslora=True)
        (2.0, 4.0)
    """
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def lora_delta(lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """The update s B A of a weight, (out, in), float32 or wider.

    Args:
        lora_A: (r, in). lora_B: (out, r).
    """
    wide = torch.promote_types(lora_A.dtype, torch.float32)
    return scaling * (lora_B.to(wide) @ lora_A.to(wide))


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor, scaling: float
) -> Tensor:
    """W x + b + s B A x (Hu et al., 2022, equation 3): (..., in) -> (..., out).

    Args:
        weight: (out, in). bias: (out,) or None. lora_A: (r, in). lora_B: (out, r).
    """
    return F.linear(x, weight, bias) + scaling * F.linear(F.linear(x, lora_A), lora_B)


# --- the layer ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoRASettings:
    """Of one adapter in one layer."""

    r: int
    lora_alpha: float
    lora_dropout: float = 0.0  # of what lora_A reads, while training
    use_rslora: bool = False
    lora_bias: bool = False  # the adapter has a bias, too

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r={self.r!r} must be a whole number of at least 1: it is a rank.")
        if not 0 < self.lora_alpha < math.inf:
            raise ValueError(
                f"lora_alpha={self.lora_alpha} must be finite and above 0: it is the weight of the "
                "update."
            )
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout={self.lora_dropout} must lie in [0, 1).")

    @property
    def scaling(self) -> float:
        return lora_scaling(self.r, self.lora_alpha, self.use_rslora)


class LoRALinear(WrappedLinear):
    """A linear layer with adapters. ``lora_A[name]`` (r, in), ``lora_B[name]`` (out, r),
    ``lora_bias[name]`` (out,) where there is one; ``active``: names of those that are added.
    """

    def __init__(self, layer: nn.Module):
        super().__init__(layer)
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.lora_bias = nn.ParameterDict()
        self.settings: dict[str, LoRASettings] = {}
        self.active: tuple[str, ...] = ()
        self.rows: list[tuple[str, Tensor]] | None = None  # adapter -> its rows, see adapter_rows
        self.n_row = 0
        self.merged: tuple[str, ...] = ()
        # No part of state_dict: what merging made is made again from the rest.
        self.register_buffer("merged_weight", None, persistent=False)  # of the weight's shape
        self.register_buffer("merged_bias", None, persistent=False)

    def add(self, name: str, settings: LoRASettings, generator: Generator | None = None) -> None:
        """A new adapter: A uniform in ±1/√in, as ``peft`` draws it, B and the bias 0."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        device = self.weight.device
        A = torch.empty(settings.r, self.in_features, dtype=dtype,
                        device=device if generator is None else generator.device)  # fmt: skip
        bound = self.in_features**-0.5
        self.lora_A[name] = nn.Parameter(A.uniform_(-bound, bound, generator=generator).to(device))
        self.lora_B[name] = nn.Parameter(
            torch.zeros(self.out_features, settings.r, dtype=dtype, device=device)
        )
        if settings.lora_bias:
            self.lora_bias[name] = nn.Parameter(
                torch.zeros(self.out_features, dtype=dtype, device=device)
            )
        self.settings[name] = settings

    def own(self, name: str) -> list[nn.Parameter]:
        """The parameters of an adapter."""
        return [table[name] for table in (self.lora_A, self.lora_B, self.lora_bias)
                if name in table]  # fmt: skip

    def plus(self, out: Tensor, x: Tensor, name: str) -> Tensor:
        """out and what an adapter adds: (..., out), of x: (..., in)."""
        A, B, settings = self.lora_A[name], self.lora_B[name], self.settings[name]
        if x.dtype != A.dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(A.dtype)
        if settings.lora_dropout and self.training:
            x = F.dropout(x, settings.lora_dropout)
        h = F.linear(x, A)  # (..., r)
        if h.dtype == out.dtype:  # product, scaling and sum in one call
            flat = out.reshape(-1, out.shape[-1])
            flat = torch.addmm(flat, h.reshape(-1, h.shape[-1]), B.T, alpha=settings.scaling)
            out = flat.view(out.shape)
        else:
            out = out + (settings.scaling * F.linear(h, B)).to(out.dtype)
        if settings.lora_bias:
            out = out + (settings.scaling * self.lora_bias[name]).to(out.dtype)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.merged and self.enabled:
            if self.training and torch.is_grad_enabled():
                raise RuntimeError("LoRA is merged and would learn nothing: unmerge_lora first.")
            weight = self.merged_weight
            return F.linear(x, weight.T if self.transposed else weight, self.merged_bias)
        out = self.linear(x)
        if not self.enabled:
            return out
        if self.rows is not None:
            return self._each_row(x, out)
        for name in self.active:
            out = self.plus(out, x, name)
        return out

    def _each_row(self, x: Tensor, out: Tensor) -> Tensor:
        if len(x) != self.n_row:
            raise ValueError(
                f"adapter_rows was told {self.n_row} rows, and a batch of {len(x)} came: give one "
                "name a row. For course_lib.generate, which drops rows that have ended, wrap the "
                "model in AdapterRows."
            )
        for name, rows in self.rows:
            out = out.index_copy(0, rows, self.plus(out[rows], x[rows], name))
        return out

    @torch.no_grad()
    def merge(self, names: Sequence[str]) -> float:
        """Make W + Σ s B A; returns the share of the update that rounding to W's type took."""
        names = tuple(name for name in names if name in self.settings)
        if not names:
            return 0.0
        delta = sum(lora_delta(self.lora_A[n], self.lora_B[n], self.settings[n].scaling)
                    for n in names)  # (out, in)  # fmt: skip
        delta = delta.T if self.transposed else delta
        exact = self.weight.to(delta.dtype) + delta
        self.merged_weight = exact.to(self.weight.dtype)
        biases = [self.settings[n].scaling * self.lora_bias[n]
                  for n in names if n in self.lora_bias]  # fmt: skip
        self.merged_bias = None if self.bias is None else self.bias.detach()
        if biases:
            total = sum(biases) + (0 if self.bias is None else self.bias.to(delta.dtype))
            self.merged_bias = total.to(self.weight.dtype)
        self.merged = names
        lost = (self.merged_weight.to(exact.dtype) - exact).norm()
        return float(lost / delta.norm().clamp(min=torch.finfo(delta.dtype).tiny))

    def unmerge(self) -> None:
        self.merged, self.merged_weight, self.merged_bias = (), None, None

    def plain(self) -> nn.Module:
        """The layer that was wrapped, with what was merged in its weights."""
        merged, layer = self.merged, super().plain()
        if merged:  # new tensors: whatever was tied to the old ones keeps them
            layer.weight = nn.Parameter(self.merged_weight, self.weight.requires_grad)
            if self.merged_bias is not None:
                layer.bias = nn.Parameter(self.merged_bias, self.weight.requires_grad)
        return layer
