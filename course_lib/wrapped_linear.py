"""Linear layers found by their names, and wrappers that stand in their place.

A wrapper holds the layer's weight and bias, the very same tensors under the same names: the keys of
``state_dict`` stay, what is tied stays tied, and the layer can be put back as it was.
Linear are ``nn.Linear`` and transformers' ``Conv1D``, whose weight is stored (in, out).
Simplified away: embeddings, convolutions, quantised layers; layers that stand at two places.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.optim import HEADS

ALL_LINEAR = "all-linear"


def is_transposed(layer: nn.Module) -> bool:
    """Whether it is transformers' ``Conv1D``, a linear layer whose weight is (in, out)."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


class WrappedLinear(nn.Module):
    """A linear layer and something beside it, which a class derived from this one computes.

    Args:
        layer: see the module; its weight and bias become the wrapper's.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.transposed = is_transposed(layer)
        self.register_parameter("weight", layer.weight)  # (out, in), or (in, out) if transposed
        self.register_parameter("bias", layer.bias)
        self.enabled = True
        self._plain = (layer,)  # in a tuple it is no part of this module
        self.train(layer.training)

    @property
    def out_features(self) -> int:
        return self.weight.shape[1 if self.transposed else 0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[0 if self.transposed else 1]

    def linear(self, x: Tensor) -> Tensor:
        """What the layer alone makes of x: (..., in) -> (..., out)."""
        return F.linear(x, self.weight.T if self.transposed else self.weight, self.bias)

    def plain(self) -> nn.Module:
        """The layer that was wrapped, with the wrapper's weight and bias."""
        (layer,) = self._plain
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)


def linear_layers(model: nn.Module, wrapper: type = WrappedLinear) -> dict[str, nn.Module]:
    """Name -> layer of all linear layers of the model, and of those wrapped in ``wrapper``."""
    wrapped = {id(m) for m in model.modules() if isinstance(m, WrappedLinear)}
    inside: set[int] = set()  # layers that are parts of a wrapper
    for module in model.modules():
        if id(module) in wrapped:
            inside |= {id(m) for m in module.modules() if m is not module}
    return {
        name: m for name, m in model.named_modules() if name and id(m) not in inside and (
            isinstance(m, wrapper) or is_transposed(m)
            or (isinstance(m, nn.Linear) and type(m).forward is nn.Linear.forward)
        )
    }  # fmt: skip


def ends_with(name: str, end: str) -> bool:
    """Whether the last parts of a dotted name are these."""
    return name == end or name.endswith(f".{end}")


def last_parts(names: Iterable[str]) -> str:
    """Their last parts, each once, for an error.

    Example:
        >>> last_parts(["blocks.0.attention.q", "blocks.1.attention.q", "head"])
        'head, q'
    """
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def find_linear(
    model: nn.Module, target_modules: str | Sequence[str], wrapper: type = WrappedLinear
) -> dict[str, nn.Module]:
    """Name -> layer of the linear layers that are meant, as ``peft`` reads ``target_modules``.

    Args:
        target_modules: a list of names or of their last parts, such as ``["q", "attention.out"]``;
            or a string, a regular expression that the whole name must match; or ``"all-linear"``:
            all but what turns hidden states into outputs (``optim.HEADS``).
        wrapper: layers that are already wrapped in it count too.

    Raises:
        ValueError: nothing matches, or an entry of the list does not; it names what would.
    """
    layers = linear_layers(model, wrapper)
    if target_modules == ALL_LINEAR:
        found = {n: m for n, m in layers.items() if n.rpartition(".")[2] not in HEADS}
        missing = [] if found else [target_modules]
    elif isinstance(target_modules, str):
        found = {n: m for n, m in layers.items() if re.fullmatch(target_modules, n)}
        missing = [] if found else [target_modules]
    else:
        targets = list(target_modules)
        found = {n: m for n, m in layers.items() if any(ends_with(n, t) for t in targets)}
        missing = [t for t in targets if not any(ends_with(n, t) for n in layers)]
        if not targets:
            raise ValueError(f"target_modules is empty. Linear layers end in {last_parts(layers)}.")
    if missing:
        raise ValueError(_no_match(model, missing, target_modules, layers))
    return found


def _no_match(model: nn.Module, missing: list[str], target_modules, layers: dict) -> str:
    if not layers:
        return f"{type(model).__name__} has no linear layer that is not wrapped already."
    other = {type(m).__name__ for n, m in model.named_modules()
             if n not in layers and any(ends_with(n, t) for t in missing)}  # fmt: skip
    text = f"target_modules: {', '.join(map(repr, missing))} matches no linear layer"
    text += f", but a layer of type {', '.join(sorted(other))}" if other else ""
    text += f" of {type(model).__name__}. Names that would match end in {last_parts(layers)}."
    if isinstance(target_modules, str) and target_modules != ALL_LINEAR:
        text += (
            " A string is a regular expression for whole names, such as "
            f"{next(iter(layers))!r}; for the last part of names give a list."
        )
    return text


def replace(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put ``layer`` where the model has the one of that name; returns it."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
    return layer


def freeze(model: nn.Module) -> None:
    """Let no parameter of the model be trained."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of what the model had before anything was added; tied ones once."""
    added = {id(p) for m in model.modules() if isinstance(m, WrappedLinear)
             for name, p in m.named_parameters() if name not in ("weight", "bias")}  # fmt: skip
    return {name: p for name, p in model.named_parameters() if id(p) not in added}


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within it the model computes what it did before LoRA, adapters and soft prompts were added,
    bit for bit: e.g. as the reference of DPO. It does so too while LoRA is merged.
    """
    switched = [m for m in model.modules() if isinstance(getattr(m, "enabled", None), bool)]
    before = [m.enabled for m in switched]
    for module in switched:
        module.enabled = False
    try:
        yield
    finally:
        for module, enabled in zip(switched, before, strict=True):
            module.enabled = enabled
