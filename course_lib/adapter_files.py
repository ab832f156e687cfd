"""Adapters on the disk, in the format of the library ``peft``: either opens the other's.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` with the adapter's weights
alone, under transformers' names, also those of our models. The header of the weights has the
fingerprint of the base beside which they were trained; ``peft`` does not look at it. Where q, k and
v are one layer over there (GPT-2, BLOOM), so are their adapters, whose ranks add up; read again,
each part is what it was, and what added nothing to it is left out.
What ``peft`` has beyond ``lora``'s docstring is refused by name, and so are bottleneck adapters,
for which it has no format.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from course_lib.files import read_text, replacing
from course_lib.lora import check_names, install, lora_layers, pattern_value
from course_lib.lora_layer import LoRALinear, LoRASettings
from course_lib.models import fingerprint, fused_rows, transformers_names, transformers_weights
from course_lib.models.base import Model
from course_lib.models.configs import family_of
from course_lib.models.decoder import Decoder
from course_lib.soft_prompts import SoftPrompt, add_soft_prompt
from course_lib.wrapped_linear import base_parameters, is_transposed, linear_layers

FILES = ("adapter_config.json", "adapter_model.safetensors")
FINGERPRINT = "base_fingerprint"
"""The entry of the header of the weights."""
PREFIX = "base_model.model."
"""What peft's names of weights begin with: its two wrappers."""
ABSENT = {
    "bias": "none", "use_dora": False, "use_qalora": False, "modules_to_save": None,
    "layer_replication": None, "target_parameters": None, "trainable_token_indices": None,
    "num_transformer_submodules": 1,
}  # fmt: skip
"""Fields of peft's configs that may have this value only, or None, or be left out."""
PARTS = {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B", "lora_B.bias": "lora_bias"}
"""peft's name of a part -> ours."""


def base_fingerprint(model: nn.Module) -> str:
    """Of the weights that the model had before anything was added, under transformers' names: one
    of our models and its copy over there have the same (BERT's and BART's families apart, which
    store a bias twice).
    """
    model = model.model if isinstance(model, SoftPrompt) else model
    weights: Mapping[str, Tensor] = base_parameters(model)
    if isinstance(model, Model):
        weights = transformers_weights(model.config, weights)
    return fingerprint(weights)


def _places(model: nn.Module) -> dict[str, str]:
    """Our name of each linear layer -> its name over there; the same for models from there."""
    names = list(linear_layers(model))
    if not isinstance(model, Model):
        return {name: name for name in names}
    return transformers_names(model.config, names)


@dataclass
class _Adapter:
    """What one layer has, ours or over there."""

    settings: LoRASettings
    lora_A: Tensor  # (r, in)
    lora_B: Tensor  # (out, r)
    lora_bias: Tensor | None = None  # (out,)

    def resized(self, r: int, **tensors) -> "_Adapter":
        """Of another rank with the same scaling."""
        old = self.settings
        alpha = old.scaling * (math.sqrt(r) if old.use_rslora else r)
        return replace(self, settings=replace(old, r=r, lora_alpha=alpha), **tensors)


def _fuse(parts: list[tuple[Tensor, _Adapter]], n_out: int) -> _Adapter:
    """One adapter of a layer of n_out rows that does what those of its rows do: the A below each
    other, each B in its own rows and columns. parts: (rows, adapter).
    """
    first, r = parts[0][1], sum(len(one.lora_A) for _, one in parts)
    B, bias, column = first.lora_B.new_zeros(n_out, r), first.lora_B.new_zeros(n_out), 0
    for rows, one in parts:
        scale, end = one.settings.scaling / first.settings.scaling, column + len(one.lora_A)
        B[rows, column:end] = scale * one.lora_B.detach()
        if one.lora_bias is not None:
            bias[rows] = scale * one.lora_bias.detach()
        column = end
    A = torch.cat([one.lora_A for _, one in parts])
    return first.resized(r, lora_A=A, lora_B=B,
                         lora_bias=bias if first.settings.lora_bias else None)  # fmt: skip


def _split(fused: _Adapter, rows: Tensor) -> _Adapter | None:
    """The adapter of these rows of a layer, without what adds nothing to them; None if all does."""
    B = fused.lora_B[rows]
    bias = None if fused.lora_bias is None else fused.lora_bias[rows]
    kept = B.any(0) if fused.lora_B.any() else torch.ones_like(B[0], dtype=torch.bool)
    if bias is not None and bias.any() and not kept.any():
        kept[0] = True
    if not kept.any():
        return None
    return fused.resized(int(kept.sum()), lora_A=fused.lora_A[kept], lora_B=B[:, kept],
                         lora_bias=bias)  # fmt: skip


def _rows(model: nn.Module, name: str) -> Tensor | None:
    return fused_rows(model.config, name) if isinstance(model, Model) else None


# --- writing ------------------------------------------------------------------------------------


def save_adapter(
    model: nn.Module, folder: str | Path, adapter_name: str = "default",
    base_model: str | Path = "",
) -> None:  # fmt: skip
    """Write a LoRA adapter or a soft prompt, and nothing of the base, as ``peft`` would.

    Both files are written aside and then moved to their places, the weights first.

    Args:
        model: with the adapter.
        adapter_name: which one, where it holds several.
        base_model: path or hub id of the base, for ``peft.AutoPeftModel``; transformers' models
            know their own.

    Raises:
        ValueError: no such adapter; layers of it that differ where the format has one value.
    """
    weights, fields = (_soft_prompt(model) if isinstance(model, SoftPrompt)
                       else _lora(model, adapter_name))  # fmt: skip
    fields |= {
        "base_model_name_or_path": str(base_model or getattr(model.config, "_name_or_path", "")
                                       if hasattr(model, "config") else base_model),
        "inference_mode": True,
    }  # fmt: skip
    weights = {name: x.detach().cpu().contiguous() for name, x in weights.items()}
    header = {"format": "pt", FINGERPRINT: base_fingerprint(model)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config_path, weights_path = (folder / name for name in FILES)
    with replacing(config_path) as new_config, replacing(weights_path) as new_weights:
        save_file(weights, new_weights, metadata=header)
        text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
        new_config.write_text(text, encoding="utf-8", newline="\n")
        new_weights.chmod(new_config.stat().st_mode)  # safetensors hides its files from other users


def _soft_prompt(model: SoftPrompt) -> tuple[dict[str, Tensor], dict]:
    (P, C), config = model.prompt.shape, model.config
    ours = isinstance(model.model, Model)
    return {"prompt_embeddings": model.prompt}, {
        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": P,
        "token_dim": C, "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM",
        "num_layers": config.n_layer if ours else config.num_hidden_layers,
        "num_attention_heads": config.n_head if ours else config.num_attention_heads,
    }  # fmt: skip


def _is_transposed_there(model: nn.Module, layers: Mapping[str, LoRALinear]) -> bool:
    """Whether the weights of these layers are (in, out) over there, as ``peft`` wants to know."""
    if isinstance(model, Model):
        return family_of(model.config).transposed and any(n.startswith("blocks.") for n in layers)
    return any(layer.transposed for layer in layers.values())


def _lora(model: nn.Module, adapter_name: str) -> tuple[dict[str, Tensor], dict]:
    check_names(model, [adapter_name])
    layers = {n: m for n, m in lora_layers(model).items() if adapter_name in m.settings}
    places, fused, found = _places(model), {}, {}
    for name, layer in layers.items():
        own = _Adapter(layer.settings[adapter_name], *(
            table.get(adapter_name) for table in (layer.lora_A, layer.lora_B, layer.lora_bias)
        ))  # fmt: skip
        rows = _rows(model, name)
        if rows is None:
            found[places[name]] = own
        else:
            fused.setdefault(places[name], []).append((rows, own))
    found |= {n: _fuse(parts, 3 * model.config.n_embd) for n, parts in fused.items()}
    weights = {
        f"{PREFIX}{n}.{theirs}": getattr(own, ours)
        for n, own in found.items() for theirs, ours in PARTS.items()
        if getattr(own, ours) is not None
    }  # fmt: skip
    settings = {n: own.settings for n, own in found.items()}
    first = next(iter(settings.values()))
    if len({(s.use_rslora, s.lora_bias, s.lora_dropout) for s in settings.values()}) > 1:
        raise ValueError(
            f"The layers of {adapter_name!r} differ in use_rslora, lora_bias or lora_dropout, for "
            "which the format has one value."
        )
    patterns = {
        f"{argument}_pattern": {re.escape(n): getattr(s, field) for n, s in settings.items()
                                if getattr(s, field) != getattr(first, field)}
        for argument, field in (("rank", "r"), ("alpha", "lora_alpha"))
    }  # fmt: skip
    causal = (isinstance(model, Decoder) and not model.config.n_label) or (
        type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    )  # fmt: skip
    return weights, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM" if causal else None,
        "r": first.r, "lora_alpha": first.lora_alpha, "lora_dropout": first.lora_dropout,
        "use_rslora": first.use_rslora, "lora_bias": first.lora_bias, "bias": "none",
        "target_modules": sorted(settings), "init_lora_weights": True,
        "fan_in_fan_out": _is_transposed_there(model, layers), **patterns,
    }  # fmt: skip


# --- reading ------------------------------------------------------------------------------------


def load_adapter(
    model: nn.Module, folder: str | Path, adapter_name: str = "default", check_base: bool = True
) -> nn.Module:
    """Put an adapter from a folder on a model, ours or ``peft``'s.

    Args:
        model: the base, with other adapters or without.
        adapter_name: what it is called from now on. It becomes the active one.
        check_base: refuse a base with other weights than the one beside which the adapter was
            trained. Files that ``peft`` wrote have no fingerprint: of theirs only the shapes tell.

    Returns:
        The model itself with a LoRA adapter, or a new ``SoftPrompt`` around it.

    Raises:
        FileNotFoundError: a file that the folder lacks.
        ValueError: files that are damaged or hold what is not supported here (named); another
            base; layers that the model lacks, or that have another shape.
    """
    fields, weights, header = _read(Path(folder))
    kind = fields.get("peft_type")
    if kind not in ("LORA", "PROMPT_TUNING"):
        raise ValueError(f"{folder} holds peft_type={kind!r}; LORA and PROMPT_TUNING can be read.")
    for name, value in ABSENT.items():
        if fields.get(name) not in (None, value, [], {}):
            raise ValueError(f"{folder}: {name}={fields[name]!r} is not supported here.")
    wanted = header.get(FINGERPRINT)
    if check_base and wanted and (found := base_fingerprint(model)) != wanted:
        raise ValueError(
            f"{folder} was trained beside a base whose weights have the fingerprint {wanted[:12]}, "
            f"and this one's is {found[:12]}: another model, another precision, or trained since. "
            f"Load the base that is meant ({fields.get('base_model_name_or_path') or 'unnamed'}); "
            "check_base=False goes on all the same."
        )
    if kind == "PROMPT_TUNING":
        return _load_soft_prompt(model, folder, weights)
    return _load_lora(model, folder, adapter_name, fields, weights)


def _read(folder: Path) -> tuple[dict, dict[str, Tensor], dict[str, str]]:
    for name in FILES:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}: it does not hold a whole adapter.")
    try:
        fields = {**json.loads(read_text(folder / FILES[0]))}
        with safe_open(folder / FILES[1], "pt") as file:
            return fields, {n: file.get_tensor(n) for n in sorted(file.keys())}, (
                file.metadata() or {}
            )  # fmt: skip
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged ({error}): fetch it again.") from None


def _load_soft_prompt(model: nn.Module, folder, weights: dict[str, Tensor]) -> SoftPrompt:
    prompt = weights.pop("prompt_embeddings", None)
    C = model.get_input_embeddings().weight.shape[1]
    if prompt is None or weights or prompt.ndim != 2 or prompt.shape[1] != C:
        raise ValueError(
            f"{folder}: expected prompt_embeddings (P, {C}) alone, got "
            f"{'none' if prompt is None else tuple(prompt.shape)}, and {sorted(weights)}."
        )
    wrapped = add_soft_prompt(model, len(prompt), init=[0])
    with torch.no_grad():
        wrapped.prompt.copy_(prompt)
    return wrapped


def _load_lora(model, folder, adapter_name: str, fields: dict, weights: dict) -> nn.Module:
    parts: dict[str, dict[str, Tensor]] = {}  # their name of a layer -> our name of a part
    for key, tensor in weights.items():
        end = next((e for e in PARTS if key.endswith(f".{e}")), None)
        if end is None or not key.startswith(PREFIX):
            raise ValueError(f"{folder}: {key} is no part of a LoRA adapter that is known here.")
        parts.setdefault(key[len(PREFIX) : -len(end) - 1], {})[PARTS[end]] = tensor
    places = {n: p for n, p in _places(model).items() if p in parts}
    if missing := sorted(set(parts) - set(places.values())):
        raise ValueError(
            f"{folder} has an adapter for {', '.join(missing[:3])} ({len(missing)} layers in all "
            f"that {type(model).__name__} lacks): it belongs to another base."
        )
    found: dict[str, _Adapter] = {}
    for name, place in places.items():
        rows = _rows(model, name)
        _check_shapes(model.get_submodule(name), f"{folder}: {place}", parts[place], rows)
        alpha = pattern_value(fields.get("alpha_pattern") or {}, place, fields["lora_alpha"])
        own = _Adapter(LoRASettings(
            len(parts[place]["lora_A"]), alpha, fields.get("lora_dropout") or 0.0,
            bool(fields.get("use_rslora")), "lora_bias" in parts[place],
        ), **parts[place])  # fmt: skip
        if rows is not None:
            own = _split(own, rows)
        if own is not None:
            found[name] = own
    install(model, {name: own.settings for name, own in found.items()}, adapter_name)
    with torch.no_grad():
        for name, own in found.items():
            for part in PARTS.values():
                if (tensor := getattr(own, part)) is not None:
                    getattr(model.get_submodule(name), part)[adapter_name].copy_(tensor)
    return model


def _check_shapes(layer: nn.Module, where: str, parts: dict[str, Tensor], rows) -> None:
    """Before anything is changed."""
    n_in, n_out = _widths(layer)
    n_out = n_out if rows is None else 3 * n_out
    A, B = (parts.get(name, torch.empty(0)) for name in ("lora_A", "lora_B"))
    if A.ndim != 2 or A.shape[1] != n_in or B.shape != (n_out, len(A)):
        raise ValueError(
            f"{where} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}; the layer asks for "
            f"(r, {n_in}) and ({n_out}, r): it belongs to another base."
        )


def _widths(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, LoRALinear) or not is_transposed(layer):
        return layer.in_features, layer.out_features
    return tuple(layer.weight.shape)
