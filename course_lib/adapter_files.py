"""Adapters on the disk, in the format of the library ``peft``: either opens the other's.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` with the adapter's weights
alone, under transformers' names, also those of our models. The header of the weights has the
fingerprint of the base beside which they were trained; ``peft`` does not look at it.
What ``peft`` has beyond ``lora``'s docstring is refused by name, and so are bottleneck adapters,
for which it has no format.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from course_lib.files import read_text, replacing
from course_lib.lora import check_names, install, lora_layers, pattern_value
from course_lib.lora_layer import LoRALinear, LoRASettings
from course_lib.models import fingerprint, transformers_names, transformers_weights
from course_lib.models.base import Model
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
    """Our name of each linear layer -> its name over there; the same for models from there.

    Raises:
        ValueError: several of our layers are one over there.
    """
    names = list(linear_layers(model))
    if not isinstance(model, Model):
        return {name: name for name in names}
    return transformers_names(model.config, names)


def _only_one_each(model: nn.Module, places: Mapping[str, str]) -> None:
    for ours, theirs in places.items():
        if list(places.values()).count(theirs) > 1:
            raise ValueError(
                f"{ours} of {type(model).__name__} is a part of {theirs} over there, which has one "
                "adapter for all of it. Put the adapter on to_transformers(model) instead, or on "
                "other layers."
            )


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
        ValueError: no such adapter; a layer that is a part of a fused one over there (GPT-2's and
            BLOOM's q, k and v).
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
    P, C = model.prompt.shape
    fields = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": P,
              "token_dim": C, "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM"}
    for name, ours in (("num_layers", "n_layer"), ("num_attention_heads", "n_head")):
        fields[name] = getattr(model.config, ours, getattr(model.config, name, None))
    fields["num_layers"] = fields["num_layers"] or model.config.num_hidden_layers
    return {"prompt_embeddings": model.prompt}, fields


def _lora(model: nn.Module, adapter_name: str) -> tuple[dict[str, Tensor], dict]:
    check_names(model, [adapter_name])
    layers = {n: m for n, m in lora_layers(model).items() if adapter_name in m.settings}
    places = {n: p for n, p in _places(model).items()}
    _only_one_each(model, {n: p for n, p in places.items() if p in {places[x] for x in layers}})
    weights = {
        f"{PREFIX}{places[name]}.{theirs}": getattr(layer, ours)[adapter_name]
        for name, layer in layers.items() for theirs, ours in PARTS.items()
        if adapter_name in getattr(layer, ours)
    }  # fmt: skip
    settings = {places[name]: layer.settings[adapter_name] for name, layer in layers.items()}
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
        "fan_in_fan_out": any(layer.transposed for layer in layers.values()), **patterns,
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
    _only_one_each(model, places)
    settings = {}
    for name, place in places.items():
        _check_shapes(model.get_submodule(name), f"{folder}: {place}", parts[place])
        alpha = pattern_value(fields.get("alpha_pattern") or {}, place, fields["lora_alpha"])
        settings[name] = LoRASettings(
            len(parts[place]["lora_A"]), alpha, fields.get("lora_dropout") or 0.0,
            bool(fields.get("use_rslora")), "lora_bias" in parts[place],
        )  # fmt: skip
    install(model, settings, adapter_name)
    with torch.no_grad():
        for name, place in places.items():
            for part, tensor in parts[place].items():
                getattr(model.get_submodule(name), part)[adapter_name].copy_(tensor)
    return model


def _check_shapes(layer: nn.Module, where: str, parts: dict[str, Tensor]) -> None:
    """Before anything is changed."""
    n_in, n_out = _widths(layer)
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
