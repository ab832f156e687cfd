"""Weights across the border: to and from transformers' models and their files.

A folder holds ``config.json`` and ``model.safetensors`` as transformers writes them. The names of
both sides stand in ``families``. Fields that change the computation and that these models do not
have are refused by name.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from course_lib.models.base import Model
from course_lib.models.families import FAMILIES, WITHOUT_EFFECT, Family, pairs
from course_lib.models.seq2seq import T5


def _refuse(name: str, value, allowed: str) -> None:
    raise ValueError(
        f"config field {name}={value!r} is not supported (only {allowed}): load this model with "
        "transformers instead."
    )


def _check_fields(family: Family, fields: dict) -> None:
    """Raise a ValueError that names a field that we do not know or whose value we do not have."""
    for name, allowed in family.required.items():
        if name in fields and fields[name] not in allowed:
            _refuse(name, fields[name], " or ".join(map(repr, allowed)))
    for name, other in pairs(family.same).items():
        if name in fields and fields[name] != fields.get(other):
            _refuse(name, fields[name], f"{other}={fields.get(other)!r}")
    known = {*pairs(family.fields), *pairs(family.same), *family.required, *WITHOUT_EFFECT}
    if unknown := sorted(set(fields) - known - set(family.ignored.split()) - {"model_type"}):
        raise ValueError(
            f"unknown config fields {unknown}: they might change what the model computes, so the "
            "model is not loaded. Load it with transformers instead."
        )


def _read_special(fields: dict, values: dict) -> None:
    """Fields that have another form here."""
    kind = fields["model_type"]
    if kind == "llama":
        values["n_kv_head"] = values["n_kv_head"] or values["n_head"]
        rope = fields.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default" or set(rope) - {"rope_type", "rope_theta"}:
            _refuse("rope_parameters", rope, "the default type")
        values["rope_theta"] = rope.get("rope_theta", fields.get("rope_theta", 10000.0))
    if kind == "t5":
        form = fields.get("feed_forward_proj", "relu")
        if form not in ("relu", "gated-gelu"):
            _refuse("feed_forward_proj", form, "'relu' or 'gated-gelu'")
        values["gated"] = form == "gated-gelu"
        tied = fields.get("tie_word_embeddings") is not False
        values["tie_embeddings"] = fields.get("scale_decoder_outputs", tied)
        if values["start_token_id"] is None:
            values["start_token_id"] = fields.get("pad_token_id") or 0


def config_from_transformers(fields: dict):
    """Our config from the content of a ``config.json``.

    Raises:
        ValueError: a field that is missing, unknown, or has a value that is not supported; the
            message names it.
    """
    kind = fields.get("model_type")
    if kind not in FAMILIES:
        _refuse("model_type", kind, " or ".join(map(repr, FAMILIES)))
    family = FAMILIES[kind]
    _check_fields(family, fields)
    architecture = (fields.get("architectures") or family.classes)[0]
    if architecture not in family.classes:
        _refuse("architectures", architecture, " or ".join(map(repr, family.classes)))
    names = pairs(family.fields)
    optional = {"num_key_value_heads", "decoder_start_token_id", *family.defaults}
    if missing := [name for name in names if fields.get(name) is None and name not in optional]:
        raise ValueError(f"config.json lacks the fields {missing}: is it a {kind} model's?")
    given = {name: value for name, value in fields.items() if value is not None}
    read = {**family.defaults, **given}
    values = {ours: read.get(theirs) for theirs, ours in names.items()}
    _read_special(fields, values)
    if architecture in family.classes[1:]:
        values["n_label"] = len(fields.get("id2label") or range(fields.get("num_labels", 2)))
    config = family.config(**values)
    if kind == "roberta":  # transformers counts the rows of the position table
        config = replace(config, block_size=config.block_size - config.first_position)
    if kind == "llama" and fields.get("head_dim") not in (None, config.n_embd // config.n_head):
        _refuse("head_dim", fields["head_dim"], f"an equal share of {config.n_embd} channels")
    return config


def _family(config) -> tuple[str, Family]:
    return next((kind, f) for kind, f in FAMILIES.items() if f.config is type(config))


def _write_special(kind: str, config) -> dict:
    """Fields that have another form there."""
    if kind == "roberta":
        return {"max_position_embeddings": config.first_position + config.block_size}
    if kind == "llama":
        return {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    if kind == "t5":
        return {
            "feed_forward_proj": "gated-gelu" if config.gated else "relu",
            "tie_word_embeddings": config.tie_embeddings,
            "scale_decoder_outputs": config.tie_embeddings,
        }
    return {}


def config_to_transformers(
    config,
    dtype: torch.dtype = torch.float32,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict:
    """The content of a ``config.json`` that transformers reads as the same model."""
    kind, family = _family(config)
    n_label = getattr(config, "n_label", None)
    fields = {
        "architectures": [family.classes[1 if n_label else 0]],
        "model_type": kind,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": str(dtype).removeprefix("torch."),
    }
    in_use = ("hidden_act", "activation_function", "attention_bias", "mlp_bias")
    fields.update({name: family.required[name][0] for name in in_use if name in family.required})
    fields.update({theirs: getattr(config, ours) for theirs, ours in pairs(family.fields).items()})
    fields.update({name: fields[other] for name, other in pairs(family.same).items()})
    if n_label:
        fields["id2label"] = {i: f"LABEL_{i}" for i in range(n_label)}
        fields["label2id"] = {f"LABEL_{i}": i for i in range(n_label)}
    return {**fields, **_write_special(kind, config)}


def _rename(name: str, table: dict[str, str]) -> str | None:
    """The name on the other side; None where the table has no such weight."""
    number = re.search(r"\.(\d+)\.", name)
    starred = name if number is None else name.replace(number[0], ".*.", 1)
    for key in (name, starred):
        module, _, leaf = key.rpartition(".")
        new = table[key] if key in table else f"{table[module]}.{leaf}" if module in table else None
        if new is not None:
            return new if number is None else new.replace("*", number[1], 1)
    return None


def _to_ours(config, weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """transformers' weights under our names and in our layout; names we lack stay as they are."""
    kind, family = _family(config)
    table, weights, ours = family.weight_names(config), dict(weights), {}
    prefix = next(iter(table)).split(".")[0] + "."  # files of a model without a head leave it out
    for copy, original in pairs(family.repeats).items():
        if copy in weights:
            tensor = weights.pop(copy)
            if copy.endswith("weight") and not torch.equal(
                tensor, weights.get(original, tensor)
            ):
                raise ValueError(f"{source}: {copy} differs from {original}: they must be tied.")
            weights.setdefault(original, tensor)
    for name, tensor in weights.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")  # BERT's first files
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        new = _rename(name, table) or _rename(prefix + name, table) or name
        if new.startswith("-"):
            continue
        if family.transposed and new.startswith("blocks.") and tensor.ndim == 2:
            tensor = tensor.T
        if ".qkv." in new:
            shape = (3, config.n_head, -1) if family.fused == 0 else (config.n_head, 3, -1)
            parts = tensor.unflatten(0, shape).unbind(family.fused)  # each (H, D, ...)
            for part, x in zip("qkv", parts, strict=True):
                ours[new.replace(".qkv.", f".{part}.")] = x.flatten(0, 1)
        else:
            ours[new] = tensor
    return ours


def _to_theirs(model: Model) -> dict[str, Tensor]:
    """Our weights under transformers' names and in its layout, without second copies of matrices.

    A bias that transformers names twice is there twice: an untied model reads one of them only.
    """
    config, ours, weights = model.config, dict(model.state_dict()), {}
    _, family = _family(config)
    table = {ours: theirs for theirs, ours in family.weight_names(config).items()}
    if family.fused is not None:
        for q in [name for name in ours if ".attention.q." in name]:
            parts = [ours.pop(q.replace(".q.", f".{part}.")) for part in "qkv"]
            parts = [x.unflatten(0, (config.n_head, -1)) for x in parts]  # (H, D, ...)
            ours[q.replace(".q.", ".qkv.")] = torch.stack(parts, family.fused).flatten(0, 2)
    for name, tensor in ours.items():
        transposed = family.transposed and name.startswith("blocks.") and tensor.ndim == 2
        weights[_rename(name, table)] = tensor.T if transposed else tensor
    for copy, original in pairs(family.repeats).items():
        if copy.endswith("bias") and original in weights:
            weights[copy] = weights[original].clone()
    return weights


def _unfilled(config) -> Model:
    """A model whose weights are about to be replaced: it must not use up random numbers."""
    with torch.random.fork_rng(devices=[]):
        return _family(config)[1].model(config)


def _load(model: Model, weights: dict[str, Tensor], source: str) -> Model:
    """Copy transformers-named weights into the model, every one of them and no other."""
    ours = _to_ours(model.config, weights, source)
    embed = ours.get("embed.weight", torch.empty(0))
    if model.head is None:
        if not torch.equal(ours.pop("head.weight", embed), embed):
            raise ValueError(
                f"{source}: the config ties the output matrix to the embeddings, but they differ."
            )
    elif isinstance(model, T5):
        ours.setdefault("head.weight", embed)  # untied in name, yet stored once
    wanted = model.state_dict()
    missing, extra = sorted(set(wanted) - set(ours)), sorted(set(ours) - set(wanted))
    if missing or extra:
        raise ValueError(f"{source} does not fit its config: missing {missing}, extra {extra}.")
    for name, tensor in ours.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, the config asks for "
                f"{tuple(wanted[name].shape)}."
            )
    model.load_state_dict(ours)
    return model


def from_transformers(hf_model: nn.Module) -> Model:
    """Our copy of a transformers model, in the same dtype and on the same device.

    Raises:
        ValueError: another architecture, or a config field that is not supported (named).
    """
    parameter = next(hf_model.parameters())
    fields = {**hf_model.config.to_dict(), "architectures": [type(hf_model).__name__]}
    model = _unfilled(config_from_transformers(fields))
    model = model.to(parameter.device, parameter.dtype).train(hf_model.training)
    return _load(model, hf_model.state_dict(), type(hf_model).__name__)


def to_transformers(model: Model, pad_token_id: int | None = None) -> nn.Module:
    """The transformers model with a copy of the model's weights.

    Args:
        pad_token_id: by it a decoder's classifier over there finds the last token of each row.
    """
    import transformers

    dtype = model.embed.weight.dtype
    fields = config_to_transformers(model.config, dtype, pad_token_id=pad_token_id)
    hf_class = getattr(transformers, fields["architectures"][0])
    with torch.random.fork_rng(devices=[]):
        hf_model = hf_class(hf_class.config_class(**fields))
    if model.head is not None:  # T5 is tied over there whatever its config says
        output = hf_model.get_output_embeddings()
        output.weight = nn.Parameter(output.weight.detach().clone())
    for parameter in hf_model.parameters():  # .to(dtype) would round the rotary frequencies too
        parameter.data = parameter.data.to(dtype)
    weights, (_, family) = _to_theirs(model), _family(model.config)
    for copy, original in pairs(family.repeats).items():
        if original in weights:
            weights.setdefault(copy, weights[original])
    names = {ours: theirs for theirs, ours in family.weight_names(model.config).items()}
    if model.head is None and "head" in names:
        weights[names["head"] + ".weight"] = weights[names["embed"] + ".weight"]
    hf_model.load_state_dict(weights)
    return hf_model.to(model.device).train(model.training)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["config.json", "model.safetensors"]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"There is no folder {hub_id}, and the hub gave no model of that name "
            f"({type(error).__name__}: {error}). Check the name and the network."
        ) from None


def from_pretrained(path_or_hub_id: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Load a model from a folder, or from the hub (needs the network) when there is no such folder.

    Args:
        dtype: of the loaded weights, whatever the file's.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: truncated or corrupted weights, weights that do not fit the config, or a
            config field that is not supported.
    """
    folder = Path(path_or_hub_id)
    if not folder.is_dir():
        if folder.is_absolute() or str(path_or_hub_id).count("/") != 1:
            raise FileNotFoundError(
                f"There is no folder {folder}. Give a folder with config.json and "
                "model.safetensors, or a hub id such as owner/name."
            )
        folder = _download(str(path_or_hub_id))
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}: it does not hold a whole model.")
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{folder}/config.json is not JSON ({error}): fetch it again.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{folder}/config.json holds no fields: fetch it again.")
    try:
        weights = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"{folder}/model.safetensors is truncated or corrupted ({error}): fetch it again."
        ) from None
    model = _unfilled(config_from_transformers(fields)).to(dtype)
    return _load(model, weights, str(folder / "model.safetensors")).eval()


def save_pretrained(
    model: Model,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` in transformers' format.

    Both are written beside their places and then renamed: a stop leaves the old files whole.

    Args:
        dtype: of the stored weights; the model's own when None.
        eos_token_id, pad_token_id: the tokenizer's, for transformers' own ``generate``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.embed.weight.dtype
    weights = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in _to_theirs(model).items()
    }
    fields = config_to_transformers(model.config, dtype, eos_token_id, pad_token_id)
    names = ("model.safetensors", "config.json")
    parts = [folder / f"{name}.part" for name in names]
    try:
        save_file(weights, parts[0], metadata={"format": "pt"})
        parts[1].write_text(json.dumps(fields, indent=2) + "\n")
        parts[0].chmod(parts[1].stat().st_mode)  # safetensors hides its files from other users
        for part, name in zip(parts, names, strict=True):
            os.replace(part, folder / name)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
