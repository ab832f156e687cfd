"""Weights across the border: to and from transformers' models and their files.

The names of both sides stand in ``families``. Config fields that change the computation and that
these models do not have are refused by name.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from course_lib.files import replacing
from course_lib.models.base import Config, Model
from course_lib.models.families import FAMILIES, FIXED, UNUSED, WITHOUT_EFFECT, Family, pairs

FILES = ("config.json", "model.safetensors")


def _refuse(name: str, value, *allowed) -> None:
    raise ValueError(
        f"config field {name}={value!r} is not supported (only {' or '.join(map(repr, allowed))}): "
        "load this model with transformers instead."
    )


def _read_special(kind: str, fields: dict, values: dict) -> None:
    """Fields that have another form here."""
    if kind == "llama":
        values["n_kv_head"] = values["n_kv_head"] or values["n_head"]
        rope = fields.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default" or set(rope) - {"rope_type", "rope_theta"}:
            _refuse("rope_parameters", rope, {"rope_type": "default", "rope_theta": "a number"})
        values["rope_theta"] = rope.get("rope_theta", fields.get("rope_theta", 10000.0))
    if kind == "t5":
        form = fields.get("feed_forward_proj", "relu")
        if form not in ("relu", "gated-gelu"):
            _refuse("feed_forward_proj", form, "relu", "gated-gelu")
        values["gated"] = form == "gated-gelu"
        tied = fields.get("tie_word_embeddings") is not False
        values["tie_embeddings"] = fields.get("scale_decoder_outputs", tied)
        if values["start_token_id"] is None:
            values["start_token_id"] = fields.get("pad_token_id") or 0


def _write_special(kind: str, config: Config) -> dict:
    """Fields that have another form there."""
    if kind == "roberta":
        return {"max_position_embeddings": config.first_position + config.block_size}
    if kind == "llama":
        return {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    if kind == "t5":
        form, tied = "gated-gelu" if config.gated else "relu", config.tie_embeddings
        tied_fields = dict.fromkeys(("tie_word_embeddings", "scale_decoder_outputs"), tied)
        return {"feed_forward_proj": form, **tied_fields}
    return {}


def config_from_transformers(fields: dict) -> Config:
    """Our config from the content of a ``config.json``.

    Raises:
        ValueError: a field (named) that is missing, unknown, or whose value is not supported.
    """
    kind = fields.get("model_type")
    if kind not in FAMILIES:
        _refuse("model_type", kind, *FAMILIES)
    family = FAMILIES[kind]
    fixed, table, values = {**FIXED, **family.fixed}, pairs(family.fields), {}
    for name, value in fixed.items():
        if fields.get(name, value) != value:
            _refuse(name, fields[name], value)
    known = {theirs for _, theirs in table} | {*fixed, *family.special.split(), *WITHOUT_EFFECT}
    if unknown := sorted(set(fields) - known):
        raise ValueError(
            f"unknown config fields {unknown}: they might change what the model computes, so the "
            "model is not loaded. Load it with transformers instead."
        )
    architecture = (fields.get("architectures") or family.classes)[0]
    if architecture not in family.classes:
        _refuse("architectures", architecture, *family.classes)
    given = {name: x for name, x in fields.items() if x is not None}
    read = {"tie_word_embeddings": True, **family.defaults, **given}
    for ours, theirs in table:
        if theirs in read and values.setdefault(ours, read[theirs]) != read[theirs]:
            _refuse(theirs, read[theirs], values[ours])
    if missing := [theirs for ours, theirs in table if ours not in values]:
        raise ValueError(f"config.json lacks the fields {missing}: is it a {kind} model's?")
    _read_special(kind, fields, values)
    if architecture in family.classes[1:]:
        values["n_label"] = len(fields.get("id2label") or range(fields.get("num_labels", 2)))
    config = family.config(**values)
    if kind == "roberta":  # transformers counts the rows of the position table
        config = replace(config, block_size=config.block_size - config.first_position)
    if kind == "llama" and fields.get("head_dim") not in (None, config.n_embd // config.n_head):
        _refuse("head_dim", fields["head_dim"], config.n_embd // config.n_head)
    return config


def _family(config: Config) -> Family:
    return next(family for family in FAMILIES.values() if family.config is type(config))


def config_to_transformers(config, dtype=torch.float32, eos_token_id=None, pad_token_id=None):
    """The content of a ``config.json``, a dict, that transformers reads as the same model."""
    family, n_label = _family(config), config.n_label
    fields = {
        "architectures": [family.classes[1 if n_label else 0]],
        "model_type": family.kind,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": str(dtype).removeprefix("torch."),
        **family.fixed,
        **{theirs: getattr(config, ours) for ours, theirs in pairs(family.fields)},
        **_write_special(family.kind, config),
    }
    if n_label:
        fields["id2label"] = {i: f"LABEL_{i}" for i in range(n_label)}
        fields["label2id"] = {f"LABEL_{i}": i for i in range(n_label)}
    return fields


def _places(model: Model) -> dict[str, str]:
    """Our name of every weight -> transformers' name of the tensor that holds it."""
    family, gated = _family(model.config), getattr(model.config, "gated", False)
    wi = ".wi_1." if gated else ".wi."  # T5 numbers its matrices when there is a gate
    return {name: family.name(name).replace(".wi.", wi) for name in model.state_dict()}


def _export(model: Model) -> dict[str, Tensor]:
    """The model's weights under transformers' names and in its shapes."""
    family, H, state, parts = _family(model.config), model.config.n_head, model.state_dict(), {}
    for name, place in _places(model).items():
        parts.setdefault(place, []).append(state[name])  # three where q, k, v are one over there
    for place, (x, *others) in parts.items():
        if others:
            x = torch.stack([y.unflatten(0, (H, -1)) for y in (x, *others)], family.fused)
            x = x.flatten(0, 2)  # (3, H, D, ...) or (H, 3, D, ...) -> (3 · H · D, ...)
        turned = family.transposed and place.startswith(family.name("blocks")) and x.ndim == 2
        parts[place] = x.T if turned else x
    biases = [pair for pair in pairs(family.copies) if pair[0].endswith("bias")]
    return parts | {copy: parts[original] for copy, original in biases if original in parts}


def _import(family: Family, name: str, x: Tensor, H: int) -> Tensor:
    """Our weight of that name, out of the tensor that holds it over there."""
    if family.transposed and name.startswith("blocks.") and x.ndim == 2:
        x = x.T
    if family.fused is None or (part := name.split(".")[-2]) not in ("q", "k", "v"):
        return x
    shape = (3, H, -1) if family.fused == 0 else (H, 3, -1)
    return x.unflatten(0, shape).select(family.fused, "qkv".index(part)).flatten(0, 1)


def _load(config: Config, weights: dict[str, Tensor], source: str, dtype: torch.dtype) -> Model:
    """A model with these transformers-named weights, every one of them and no other."""
    family = _family(config)
    model = family.model(config, torch.Generator()).to(dtype)  # uses up no random number of torch's
    wanted, places, ours = model.state_dict(), _places(model), {}
    prefix = places["embed.weight"].split(".")[0] + "."

    def plain(name: str) -> str:
        """Without the prefix, which files of a headless model leave out, and as BERT says today."""
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        return name.replace("LayerNorm.beta", "LayerNorm.bias").removeprefix(prefix)

    weights = {plain(name): tensor for name, tensor in weights.items()}
    copies = dict(pairs(family.copies))
    if model.head is None:
        copies[family.name("head.weight")] = places["embed.weight"]
    for copy, original in copies.items():
        if plain(copy) in weights:
            tensor = weights.pop(plain(copy))
            first = weights.setdefault(plain(original), tensor)
            if copy.endswith("weight") and not torch.equal(tensor, first):
                raise ValueError(
                    f"{source}: the config ties the output matrix to the embeddings, but they "
                    f"differ: {copy} differs from {original}, to which it is tied."
                )
    for name, theirs in places.items():
        if plain(theirs) in weights:
            ours[name] = _import(family, name, weights[plain(theirs)], config.n_head)
    if family.kind == "t5" and model.head is not None and "embed.weight" in ours:
        ours.setdefault("head.weight", ours["embed.weight"])  # untied in name, yet stored once
    known = {plain(theirs) for theirs in places.values()}
    missing = sorted(set(wanted) - set(ours))
    extra = sorted(name for name in set(weights) - known if not UNUSED.search(name))
    if missing or extra:
        raise ValueError(f"{source} does not fit its config: missing {missing}, extra {extra}.")
    for name, tensor in ours.items():
        got, want = tuple(tensor.shape), tuple(wanted[name].shape)
        if got != want:
            raise ValueError(f"{source}: {name} has shape {got}, the config asks for {want}.")
    model.load_state_dict(ours)
    return model


def from_transformers(hf_model: nn.Module) -> Model:
    """Our copy of a transformers model, in the same dtype and on the same device.

    Raises:
        ValueError: another architecture, or a config field that is not supported (named).
    """
    name, parameter = type(hf_model).__name__, next(hf_model.parameters())
    config = config_from_transformers({**hf_model.config.to_dict(), "architectures": [name]})
    model = _load(config, hf_model.state_dict(), name, parameter.dtype)
    return model.to(parameter.device).train(hf_model.training)


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
    theirs = hf_model.state_dict()
    for name, x in _export(model).items():
        theirs[name].copy_(x)
    return hf_model.to(model.device).train(model.training)


def _folder(path_or_hub_id: str | Path) -> Path:
    """The folder, downloaded if it is a hub's."""
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=FILES))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"There is no folder {folder}. Give a folder with {' and '.join(FILES)}, or a hub id, "
            f"such as owner/name, and check the name and the network ({error})."
        ) from None


def from_pretrained(path_or_hub_id: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """A model from a folder, or from the hub (needs the network) when there is no such folder.

    Args:
        dtype: of the loaded weights, whatever the file's.

    Raises:
        FileNotFoundError: no such folder, or a file that it lacks.
        ValueError: corrupted weights, weights that do not fit the config, or a field (named) of
            the config that is not supported.
    """
    folder = _folder(path_or_hub_id)
    for name in FILES:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}: it does not hold a whole model.")
    try:
        fields = {**json.loads((folder / "config.json").read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:  # not UTF-8, not JSON, or JSON without fields
        raise ValueError(
            f"{folder}/config.json holds no fields ({error}): fetch it again."
        ) from None
    try:
        weights = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"{folder}/model.safetensors is truncated or corrupted ({error}): fetch it again."
        ) from None
    config = config_from_transformers(fields)
    return _load(config, weights, f"{folder}/model.safetensors", dtype).eval()


def save_pretrained(
    model: Model, folder: str | Path, dtype=None, eos_token_id=None, pad_token_id=None
) -> None:
    """Write ``config.json`` and ``model.safetensors`` in transformers' format.

    Both are written aside and then moved to their places, the weights first: a stop leaves the old
    files whole.

    Args:
        dtype: of the stored weights; the model's own when None.
        eos_token_id, pad_token_id: the tokenizer's, for transformers' own ``generate``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.embed.weight.dtype
    weights = _export(model).items()
    weights = {name: x.to("cpu", dtype, copy=True).contiguous() for name, x in weights}
    fields = config_to_transformers(model.config, dtype, eos_token_id, pad_token_id)
    config_path, weights_path = (folder / name for name in FILES)
    with replacing(config_path) as new_config, replacing(weights_path) as new_weights:
        save_file(weights, new_weights, metadata={"format": "pt"})
        new_config.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        new_weights.chmod(new_config.stat().st_mode)  # safetensors hides its files from other users
