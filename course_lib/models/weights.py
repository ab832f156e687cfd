"""Weights across the border: to and from transformers' models and their files.

The names of both sides stand in ``families``, the configs are read in ``configs``.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from course_lib.files import replacing
from course_lib.models.base import Config, Model
from course_lib.models.configs import config_from_transformers, config_to_transformers, family_of
from course_lib.models.families import UNUSED, Family

FILES = ("config.json", "model.safetensors")
INDEX = "model.safetensors.index.json"
"""Where the weights lie in several files (shards): weight -> file."""


def _bare(model: nn.Module) -> Model:
    """The model, out of ``torch.compile``'s wrapper.

    Raises:
        TypeError: it is none of the course's.
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, Model):
        raise TypeError(
            f"expected one of the course's models, got {type(model).__name__}: unwrap the model "
            "first; transformers' and peft's models have a save_pretrained of their own."
        )
    return model


def _state(model: Model) -> dict[str, Tensor]:
    """The model's weights by name, also where ``torch.compile`` wraps parts of it.

    Raises:
        ValueError: weights that the model's config does not have, or lacks: a layer is wrapped.
    """
    state = {name.replace("_orig_mod.", ""): x for name, x in model.state_dict().items()}
    family = family_of(model.config)
    with torch.device("meta"):  # names and shapes, without a number
        wanted = {name: x.shape for name, x in family.model(model.config).state_dict().items()}
    if extra := sorted(set(state) - set(wanted)):
        raise ValueError(
            f"The model holds weights {extra}, which no reader of its files would know; expected "
            f"in their place: {sorted(set(wanted) - set(state))}. Merge or take off what wraps "
            "these layers, then save."
        )
    if missing := sorted(set(wanted) - set(state)):
        raise ValueError(f"The model lacks the weights {missing}, which its config asks for.")
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(state[name].shape)}, but the model's config asks for "
                f"{tuple(shape)}: change the config with the layer."
            )
    return state


def transformers_names(config: Config, names: Iterable[str]) -> dict[str, str]:
    """Our name of every weight or layer -> transformers' name of the one that holds it."""
    family, gated = family_of(config), getattr(config, "gated", False)
    return {name: family.name(name, gated) for name in names}


def transformers_weights(config: Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of one of our models under transformers' names and in its shapes.

    Args:
        state: our name -> tensor, of all weights that the config asks for.
    """
    family, H = family_of(config), config.n_head
    parts: dict[str, list[Tensor]] = {}
    turned = set()
    for name, place in transformers_names(config, state).items():
        parts.setdefault(place, []).append(state[name])  # three where q, k, v are one over there
        if family.transposed and name.startswith("blocks."):
            turned.add(place)
    weights = {}
    for place, (x, *others) in parts.items():
        if others:
            x = torch.stack([y.unflatten(0, (H, -1)) for y in (x, *others)], family.fused)
            x = x.flatten(0, 2)  # (3, H, D, ...) or (H, 3, D, ...) -> (3 · H · D, ...)
        weights[place] = x.T if place in turned and x.ndim == 2 else x
    biases = [pair for pair in family.copies.items() if pair[0].endswith("bias")]
    return weights | {copy: weights[original] for copy, original in biases if original in weights}


def _import(family: Family, name: str, x: Tensor, H: int) -> Tensor:
    """Our weight of that name, out of the tensor that holds it over there."""
    if family.transposed and name.startswith("blocks.") and x.ndim == 2:
        x = x.T
    if family.fused is None or (part := name.split(".")[-2]) not in ("q", "k", "v"):
        return x
    shape = (3, H, -1) if family.fused == 0 else (H, 3, -1)
    return x.unflatten(0, shape).select(family.fused, "qkv".index(part)).flatten(0, 1)


def fused_rows(config: Config, name: str) -> Tensor | None:
    """Which rows (outputs) of the fused layer over there our layer of that name is, q, k or v of
    GPT-2 or BLOOM; None of a layer that is one there too.
    """
    family = family_of(config)
    if family.fused is None or name.rpartition(".")[2] not in ("q", "k", "v"):
        return None
    return _import(family, f"{name}.bias", torch.arange(3 * config.n_embd), config.n_head)


def _load(config: Config, weights: dict[str, Tensor], source: str, dtype: torch.dtype) -> Model:
    """A model with these transformers-named weights, every one of them and no other."""
    family = family_of(config)
    model = family.model(config, torch.Generator()).to(dtype)  # uses up no random number of torch's
    wanted, ours = model.state_dict(), {}
    places = transformers_names(config, wanted)
    prefix = places["embed.weight"].split(".")[0] + "."

    def plain(name: str) -> str:
        """Without the prefix, which files of a headless model leave out, and as BERT says today."""
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        return name.replace("LayerNorm.beta", "LayerNorm.bias").removeprefix(prefix)

    weights = {plain(name): tensor for name, tensor in weights.items()}
    copies = dict(family.copies)
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


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights: names, types, shapes and every bit, wherever they lie."""
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


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

    model = _bare(model)
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
    for name, x in transformers_weights(model.config, _state(model)).items():
        theirs[name].copy_(x)
    return hf_model.to(model.device).train(model.training)


def _folder(path_or_hub_id: str | Path) -> Path:
    """The folder, downloaded if it is a hub's."""
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        patterns = [*FILES, INDEX, "model-*.safetensors"]
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"There is no folder {folder}. Give a folder with {' and '.join(FILES)}, or a hub id, "
            f"such as owner/name, and check the name and the network ({error})."
        ) from None


def _incomplete(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{path.parent} has no {path.name}: it does not hold a whole model.")


def _read_json(path: Path) -> dict:
    try:
        return {**json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:  # not UTF-8, not JSON, or JSON without fields
        raise ValueError(f"{path} holds no fields ({error}): fetch it again.") from None


def _read_shard(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise _incomplete(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}): fetch it again.") from None


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """All weights of a folder by transformers' names, and the file that names them: the only one,
    or the index of several.
    """
    single, index = folder / FILES[1], folder / INDEX
    if single.exists() or not index.exists():
        return _read_shard(single), single
    places = _read_json(index).get("weight_map")
    shards = set(places.values()) if isinstance(places, dict) else {None}
    if not shards or any(not isinstance(name, str) or Path(name).name != name for name in shards):
        raise ValueError(f"{index} names no files of its folder in weight_map: fetch it again.")
    weights = {}
    for shard in sorted(shards):
        found = _read_shard(folder / shard)
        here = {name for name, file in places.items() if file == shard}
        if here != set(found):
            raise ValueError(
                f"{folder / shard} does not hold what {INDEX} says: missing "
                f"{sorted(here - set(found))}, extra {sorted(set(found) - here)}. Fetch both again."
            )
        weights |= found
    return weights, index


def from_pretrained(path_or_hub_id: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """A model from a folder, or from the hub (needs the network) when there is no such folder.

    The weights lie in ``model.safetensors``, or in the files that ``model.safetensors.index.json``
    names.

    Args:
        dtype: of the loaded weights, whatever the file's.

    Raises:
        FileNotFoundError: no such folder, or a file that it lacks.
        ValueError: corrupted weights, weights that do not fit the config, or a field (named) of
            the config that is not supported.
    """
    folder = _folder(path_or_hub_id)
    if not (folder / FILES[0]).exists():
        raise _incomplete(folder / FILES[0])
    fields = _read_json(folder / FILES[0])
    weights, source = _read_weights(folder)
    return _load(config_from_transformers(fields), weights, str(source), dtype).eval()


def save_pretrained(
    model: Model, folder: str | Path, dtype=None, eos_token_id=None, pad_token_id=None
) -> None:
    """Write ``config.json`` and ``model.safetensors`` in transformers' format.

    Both are written aside and then moved to their places, the weights first: a stop leaves the old
    files whole.

    Args:
        model: compiled or not, the whole or in parts.
        dtype: of the stored weights; the model's own when None.
        eos_token_id, pad_token_id: the tokenizer's, for transformers' own ``generate``.

    Raises:
        TypeError: a model of another library.
        ValueError: a model with weights that nobody would read (named): a layer is wrapped.
    """
    model, folder = _bare(model), Path(folder)
    dtype = dtype or model.embed.weight.dtype
    weights = transformers_weights(model.config, _state(model)).items()
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: x.to("cpu", dtype, copy=True).contiguous() for name, x in weights}
    fields = config_to_transformers(model.config, dtype, eos_token_id, pad_token_id)
    config_path, weights_path = (folder / name for name in FILES)
    with replacing(config_path) as new_config, replacing(weights_path) as new_weights:
        save_file(weights, new_weights, metadata={"format": "pt"})
        new_config.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8", newline="\n")
        new_weights.chmod(new_config.stat().st_mode)  # safetensors hides its files from other users
