"""LoRA: a low-rank update beside frozen weights (Hu et al., 2022, "LoRA: Low-Rank Adaptation").

A layer's output W x becomes W x + s B A x, equation 3, with ``lora_A`` (r, in), ``lora_B``
(out, r) and the scaling s = alpha / r, or alpha / √r (rsLoRA: Kalajdzievski, 2023). B is 0 at the
start, so the model starts where it was. ``add_lora`` does it to the layers of a name; merged,
W + s B A is one matrix again and costs nothing.

Details that decide whether it works:

1. W itself is never changed: what is merged lies beside it, so that taking it away leaves W bit for
   bit, and embeddings that are tied to W stay as they are.
2. Dropout is on what A reads, not on what W reads.
3. A layer may hold several adapters. Those that are active are added up, and trained; or each row
   of a batch has its own (``adapter_rows``).
4. A bias that is trained with LoRA is the adapter's, ``lora_bias``: taken away with it.
5. A and B are float32 at least, and W + s B A is added up so, before it is rounded to W's type.

Simplified away: DoRA, other first weights than B = 0, quantised bases, LoRA on embeddings.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Generator, nn

from course_lib import wrapped_linear
from course_lib.lora_layer import LoRALinear, LoRASettings
from course_lib.wrapped_linear import find_linear, freeze


def add_lora(
    model: nn.Module, r: int, lora_alpha: float, target_modules: str | Sequence[str], *,
    lora_dropout: float = 0.0, use_rslora: bool = False, lora_bias: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None, adapter_name: str = "default",
    generator: Generator | None = None,
) -> nn.Module:  # fmt: skip
    """Put a LoRA adapter on linear layers of a model, in place; all else is frozen.

    Args:
        model: one of ours, or any module with linear layers.
        r: rank of the update. lora_alpha: its scaling is ``lora_scaling``.
        target_modules: which layers, see ``wrapped_linear.find_linear``.
        lora_dropout: of what ``lora_A`` reads, while training.
        use_rslora: alpha / √r instead of alpha / r.
        lora_bias: the adapter has a bias, too.
        rank_pattern, alpha_pattern: {pattern: value} for some of the layers. A pattern is a regular
            expression for the end of a name; the first that matches counts, as in ``peft``.
        adapter_name: a further one stands beside those that are there, and becomes the active one.
        generator: draws ``lora_A``; torch's own when None.

    Returns:
        The model itself.

    Raises:
        ValueError: settings that make no sense, a target or pattern that matches nothing (it names
            what would), a name that is taken, a model that is merged.

    Example: 6 · 7 weights of a layer, and 2 · (6 + 7) that are trained.
        >>> model = add_lora(nn.Sequential(nn.Linear(6, 7)), 2, 4, ["0"])
        >>> model[0].lora_A["default"].shape, model[0].lora_B["default"].shape
        (torch.Size([2, 6]), torch.Size([7, 2]))
    """
    settings = LoRASettings(r, lora_alpha, lora_dropout, use_rslora, lora_bias)
    layers = find_linear(model, target_modules, LoRALinear)
    ranks = _by_pattern("rank_pattern", rank_pattern or {}, layers)
    alphas = _by_pattern("alpha_pattern", alpha_pattern or {}, layers)
    return install(model, {
        name: replace(settings, r=ranks.get(name, r), lora_alpha=alphas.get(name, lora_alpha))
        for name in layers
    }, adapter_name, generator)  # fmt: skip


def pattern_value(patterns: Mapping, name: str, default):
    """The value of the first pattern that matches the end of a name, as ``peft`` does."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", name)), default)


def _by_pattern(argument: str, patterns: Mapping, names: Mapping) -> dict:
    for pattern in patterns:
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
            raise ValueError(
                f"{argument}: {pattern!r} matches none of the layers that get LoRA. Their names "
                f"end in {wrapped_linear.last_parts(names)}."
            )
    found = {name: pattern_value(patterns, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def install(
    model: nn.Module, settings: Mapping[str, LoRASettings], adapter_name: str,
    generator: Generator | None = None,
) -> nn.Module:  # fmt: skip
    """Put an adapter on the layers of these names, freeze all else, and make it the active one."""
    check_unmerged(model, "add an adapter")
    if not adapter_name or "." in adapter_name or hasattr(nn.ParameterDict, adapter_name):
        raise ValueError(f"adapter_name={adapter_name!r} cannot be a name: take another, no dots.")
    if adapter_name in (taken := adapter_names(model)):
        raise ValueError(
            f"The model has an adapter {adapter_name!r} already, of {', '.join(taken)}: give "
            "another adapter_name."
        )
    freeze(model)
    for name, own in settings.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, LoRALinear):
            layer = wrapped_linear.replace(model, name, LoRALinear(layer))
        layer.add(adapter_name, own, generator)
    use_adapter(model, adapter_name)
    return model


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Name -> layer of those that have adapters."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters that the model holds, in the order in which they came."""
    return list(dict.fromkeys(n for layer in lora_layers(model).values() for n in layer.settings))


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    there = adapter_names(model)
    if unknown := sorted(set(names) - set(there)):
        raise ValueError(
            f"There is no adapter {', '.join(map(repr, unknown))}: the model has "
            f"{', '.join(map(repr, there)) or 'none, see add_lora'}."
        )


def check_unmerged(model: nn.Module, what: str) -> None:
    merged = {name for layer in lora_layers(model).values() for name in layer.merged}
    if merged:
        raise ValueError(
            f"{', '.join(sorted(merged))} is merged into the weights: unmerge_lora before you "
            f"{what}."
        )


def use_adapter(model: nn.Module, names: str | Sequence[str] | None) -> None:
    """Choose the adapters that are added up and trained; None: none of them.

    Raises:
        ValueError: a name that is not there, a model that is merged.
    """
    names = [] if names is None else [names] if isinstance(names, str) else list(names)
    check_names(model, names)
    check_unmerged(model, "choose another adapter")
    for layer in lora_layers(model).values():
        layer.active = tuple(name for name in dict.fromkeys(names) if name in layer.settings)
        for name in layer.settings:
            for parameter in layer.own(name):
                parameter.requires_grad_(name in layer.active)


def merge_lora(model: nn.Module, names: str | Sequence[str] | None = None) -> nn.Module:
    """Compute with W + Σ s B A from now on, in place: one product a layer, as without LoRA.

    W is kept, so that merging again gives the same, and ``unmerge_lora`` gives W back bit for bit.
    The sum is made in float32 and rounded to W's type; where that takes more than a tenth of the
    update, as bfloat16 does with small ones, it warns.

    Args:
        names: of the adapters; the active ones when None.

    Returns:
        The model itself. ``unload_lora`` makes a plain one of it.

    Raises:
        ValueError: a name that is not there, no adapter at all.
    """
    layers = lora_layers(model)
    names = [names] if isinstance(names, str) else names
    check_names(model, names or [])
    chosen = {name: layer.active if names is None else names for name, layer in layers.items()}
    if not any(chosen.values()):
        raise ValueError("There is no active adapter to merge: see add_lora and use_adapter.")
    lost = {}
    for name, layer in layers.items():
        layer.unmerge()
        lost[name] = layer.merge(chosen[name])
    worst = max(lost, key=lost.get)
    if lost[worst] > 0.1:
        warnings.warn(
            f"Rounding to {layers[worst].weight.dtype} took {lost[worst]:.0%} of the update of "
            f"{worst}: merge in float32 (model.float() first).", stacklevel=2,
        )  # fmt: skip
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Compute with W and the adapters apart again; nothing happens where nothing is merged."""
    for layer in lora_layers(model).values():
        layer.unmerge()
    return model


def unload_lora(model: nn.Module) -> nn.Module:
    """Put the plain layers back, in place: with what is merged, else as before LoRA.

    Where a merged layer was tied, as an output matrix is to the embeddings, it is a matrix of its
    own from then on, and transformers' config says so.
    """
    layers = lora_layers(model)
    for name, layer in layers.items():
        wrapped_linear.replace(model, name, layer.plain())
    if hasattr(model, "get_output_embeddings"):
        output, inputs = model.get_output_embeddings(), model.get_input_embeddings()
        untied = output is not None and output.weight is not inputs.weight
        if untied and any(layer.weight is inputs.weight for layer in layers.values()):
            model.config.tie_word_embeddings = False
    return model


def combine_adapters(model: nn.Module, name: str, weights: Mapping[str, float]) -> nn.Module:
    """A new adapter that is the weighted sum of others, exactly: Σ w s B A, of rank Σ r.

    A sum of the factors would be another matrix: with (A, B) of (1, 1) and (2, 1) and weights 1 and
    -1 it is 0, and the sum of the updates 1 - 2 = -1.

    Args:
        weights: adapter -> weight.
    """
    if not weights:
        raise ValueError("There are no weights: give {adapter: weight}.")
    check_names(model, list(weights))
    parts = {n: [a for a in weights if a in layer.settings]
             for n, layer in lora_layers(model).items()}  # fmt: skip
    parts = {n: names for n, names in parts.items() if names}
    settings = {}
    for n, names in parts.items():
        own = [model.get_submodule(n).settings[a] for a in names]
        r, bias = sum(one.r for one in own), any(one.lora_bias for one in own)
        settings[n] = LoRASettings(r, r, max(one.lora_dropout for one in own), lora_bias=bias)
    install(model, settings, name)
    with torch.no_grad():
        for n, names in parts.items():
            layer = model.get_submodule(n)
            scaled = {a: weights[a] * layer.settings[a].scaling for a in names}
            layer.lora_A[name].copy_(torch.cat([layer.lora_A[a] for a in names]))
            layer.lora_B[name].copy_(torch.cat([s * layer.lora_B[a] for a, s in scaled.items()], 1))
            for a in set(names) & set(layer.lora_bias):
                layer.lora_bias[name].add_(scaled[a] * layer.lora_bias[a])
    return model
