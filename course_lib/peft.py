"""Parameter-efficient fine-tuning: what is trained, how much it is, and the methods by their names.

Three kinds (Lialin et al., 2023, "Scaling Down to Scale Up", section 3):

=================== ==============================================================================
selective           some of the model's own parameters: ``freeze_except``; of biases alone it is
                    BitFit (Ben Zaken et al., 2022)
reparametrisation   an update of low rank: ``add_lora``, see ``lora``
additive            new layers, ``add_adapters``, see ``bottleneck``, or new vectors before the
                    text, ``add_soft_prompt``, see ``soft_prompts``
=================== ==============================================================================

All of them work on our models and on transformers'. What is frozen has no gradient and no state in
the optimizer; ``training.train`` trains what is left.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from course_lib.adapter_files import base_fingerprint, load_adapter, save_adapter
from course_lib.adapter_rows import AdapterRows, adapter_rows
from course_lib.bottleneck import add_adapters, bottleneck
from course_lib.lora import (
    adapter_names,
    add_lora,
    combine_adapters,
    lora_layers,
    merge_lora,
    unload_lora,
    unmerge_lora,
    use_adapter,
)
from course_lib.lora_layer import LoRALinear, LoRASettings, lora_delta, lora_linear, lora_scaling
from course_lib.optim import HEADS
from course_lib.soft_prompts import SoftPrompt, add_soft_prompt
from course_lib.wrapped_linear import disabled, find_linear, freeze

__all__ = [
    "AdapterRows", "Counts", "LoRALinear", "LoRASettings", "SoftPrompt", "adapter_names",
    "adapter_rows", "add_adapters", "add_lora", "add_soft_prompt", "base_fingerprint",
    "bottleneck", "combine_adapters", "count_parameters", "disabled", "find_linear", "freeze",
    "freeze_except", "load_adapter", "lora_delta", "lora_layers", "lora_linear", "lora_scaling",
    "memory", "merge_lora", "save_adapter", "summary_table", "unload_lora", "unmerge_lora",
    "use_adapter",
]  # fmt: skip


# --- selective ----------------------------------------------------------------------------------


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "bias" or last.endswith("_bias")


def _parts(model: nn.Module) -> dict[str, set[int]]:
    """Part -> the ids of its parameters."""
    found: dict[str, set[int]] = {"biases": set(), "norms": set(), "embeddings": set(),
                                  "head": set()}  # fmt: skip
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if _is_bias(name):
            found["biases"].add(id(parameter))
    for name, module in model.named_modules():
        own = {id(p) for p in module.parameters(recurse=False)}
        if "norm" in type(module).__name__.lower():
            found["norms"] |= own
        if isinstance(module, nn.Embedding):
            found["embeddings"] |= own
        if name.rpartition(".")[2] in HEADS:
            found["head"] |= {id(p) for p in module.parameters()}
    return found


def _last_layers(model: nn.Module, k: int) -> set[int]:
    """Ids of the parameters of the last k blocks, of each stack of blocks."""
    stacks = {name: m for name, m in model.named_modules()
              if isinstance(m, nn.ModuleList) and any(True for _ in m.parameters())}  # fmt: skip
    outer = {name: m for name, m in stacks.items()
             if not any(name.startswith(f"{other}.") for other in stacks)}  # fmt: skip
    fewest = min(map(len, outer.values()), default=0)
    if isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= fewest:
        raise ValueError(
            f"last_layers={k!r}: expected 1 to {fewest}, the blocks of {type(model).__name__}."
        )
    return {id(p) for m in outer.values() for block in list(m)[-k:] for p in block.parameters()}


def freeze_except(model: nn.Module, *parts: str, last_layers: int = 0) -> nn.Module:
    """Train these parts of a model alone, in place.

    Args:
        parts: ``"biases"`` (BitFit: of norms too), ``"norms"``, ``"embeddings"`` (of tokens,
            positions and types; a tied output matrix is one of them), ``"head"`` (see
            ``optim.HEADS``); any other word is a regular expression that the whole name of a
            parameter must match.
        last_layers: so many of the last blocks, all of them.

    Returns:
        The model itself.

    Raises:
        ValueError: no part, one that the model does not have (it names what there is), more layers
            than there are.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> count_parameters(freeze_except(model, "biases"))
        Counts(trained=6, all=15)
    """
    known = _parts(model)
    chosen = _last_layers(model, last_layers) if last_layers else set()
    if not parts and not last_layers:
        raise ValueError(f"Name what is trained: {', '.join(known)}, a pattern, or last_layers.")
    for part in parts:
        ids = known[part] if part in known else {
            id(p) for name, p in model.named_parameters() if re.fullmatch(part, name)
        }  # fmt: skip
        if not ids:
            there = ", ".join(name for name, some in known.items() if some)
            last = ", ".join(sorted({n.rpartition(".")[2] for n, _ in model.named_parameters()}))
            raise ValueError(
                f"{part!r} matches no parameter of {type(model).__name__}. It has {there}; a "
                f"pattern is a regular expression for whole names, which end in {last}, such as "
                f"{next(n for n, _ in model.named_parameters())!r}."
            )
        chosen |= ids
    freeze(model)
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return model


# --- counting -----------------------------------------------------------------------------------


class Counts(NamedTuple):
    """Numbers of parameters; tied ones count once."""

    trained: int
    all: int

    @property
    def share(self) -> float:
        return self.trained / self.all


def count_parameters(model: nn.Module) -> Counts:
    """How many parameters are trained, of how many, what was added included."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Counts(sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes))


class Memory(NamedTuple):
    """Bytes that lie there between two steps; activations come on top."""

    weights: int
    gradients: int
    optimizer: int


def memory(model: nn.Module, states_per_weight: int = 2) -> Memory:
    """Bytes of weights, of their gradients, and of the optimizer's state.

    Args:
        states_per_weight: numbers that the optimizer keeps for a weight: 2 of AdamW, 1 of momentum,
            0 of plain SGD.
    """
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    trained = sum(n for n, trains in sizes if trains)
    return Memory(sum(n for n, _ in sizes), trained, states_per_weight * trained)


def summary_table(models: Mapping[str, nn.Module], states_per_weight: int = 2) -> str:
    """A plain-text table of models: parameters that are trained, all, their share; megabytes of
    weights, gradients and optimizer state.

    Example:
        >>> print(summary_table({"biases": freeze_except(nn.Linear(999, 1000), "biases")}))
                trained        all  share   weights  gradients  optimizer
        biases    1,000  1,000,000   0.1%    4.0 MB     0.0 MB     0.0 MB
    """
    rows = [["", "trained", "all", "share", "weights", "gradients", "optimizer"]]
    for name, model in models.items():
        counts = count_parameters(model)
        sizes = [f"{n / 1e6:.1f} MB" for n in memory(model, states_per_weight)]
        rows.append([name, f"{counts.trained:,}", f"{counts.all:,}", f"{counts.share:.1%}", *sizes])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) if not i else c.rjust(w)
                               for i, (c, w) in enumerate(zip(row, widths))) for row in rows)
