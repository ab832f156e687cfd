"""Weights across the border: to and from transformers' models and their files.

A folder holds ``config.json`` and ``model.safetensors`` as transformers writes them. Fields that
change the computation and that these models do not have are refused by name.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from course_lib.models.decoder import Llama, LlamaConfig

LLAMA_FIELDS = {
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "block_size": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
"""Our config's field -> transformers'."""
REQUIRED_VALUES = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0, 0.0),
    "rope_scaling": (None,),
    "pretraining_tp": (1,),
    "rope_interleaved": (False,),
}
"""Fields that may be there only with one of these values."""
WITHOUT_EFFECT = {
    "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype",
    "initializer_range", "transformers_version", "use_cache", "head_dim", "rope_theta",
    "rope_parameters", "_name_or_path", "output_attentions", "output_hidden_states", "return_dict",
    "chunk_size_feed_forward", "id2label", "label2id", "is_encoder_decoder", "problem_type",
    "_attn_implementation_autoset", "is_llama_config", "transformers.js_config",
}  # fmt: skip
"""Fields that do not change the logits, or (head_dim, rope_*) are checked on their own."""
LLAMA_NAMES = (
    ("model.embed_tokens.", "embed."),
    ("model.layers.", "blocks."),
    (".self_attn.q_proj.", ".attention.q."),
    (".self_attn.k_proj.", ".attention.k."),
    (".self_attn.v_proj.", ".attention.v."),
    (".self_attn.o_proj.", ".attention.out."),
    (".mlp.gate_proj.", ".feed_forward.gate."),
    (".mlp.up_proj.", ".feed_forward.up."),
    (".mlp.down_proj.", ".feed_forward.down."),
    (".input_layernorm.", ".attention_norm."),
    (".post_attention_layernorm.", ".feed_forward_norm."),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
)
"""Parts of a parameter's name: transformers' and ours."""


def _rename(name: str, to_ours: bool) -> str:
    for theirs, ours in LLAMA_NAMES:
        old, new = (theirs, ours) if to_ours else (ours, theirs)
        if old in name and (old.startswith(".") or name.startswith(old)):
            name = name.replace(old, new, 1)
    return name


def config_from_transformers(fields: dict) -> LlamaConfig:
    """Our config from the content of a ``config.json``.

    Raises:
        ValueError: a field that is missing, unknown, or has a value that is not supported; the
            message names it.
    """
    for name, allowed in REQUIRED_VALUES.items():
        if name in fields and fields[name] not in allowed:
            raise ValueError(
                f"config field {name}={fields[name]!r} is not supported (only "
                f"{' or '.join(map(repr, allowed))}): load this model with transformers instead."
            )
    known = {*LLAMA_FIELDS.values(), *REQUIRED_VALUES, *WITHOUT_EFFECT}
    if unknown := sorted(set(fields) - known):
        raise ValueError(
            f"unknown config fields {unknown}: they might change what the model computes, so the "
            "model is not loaded. Load it with transformers instead."
        )
    values = {ours: fields.get(theirs) for ours, theirs in LLAMA_FIELDS.items()}
    values["n_kv_head"] = values["n_kv_head"] or values["n_head"]
    values["tie_embeddings"] = bool(values["tie_embeddings"])
    rope = fields.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or set(rope) - {"rope_type", "rope_theta"}:
        raise ValueError(f"config field rope_parameters={rope} is not supported (only default).")
    values["rope_theta"] = rope.get("rope_theta", fields.get("rope_theta", 10000.0))
    if missing := [LLAMA_FIELDS[k] for k, v in values.items() if v is None]:
        raise ValueError(f"config.json lacks the fields {missing}: is it a Llama model's?")
    config, head_dim = LlamaConfig(**values), fields.get("head_dim")
    if head_dim not in (None, config.n_embd // config.n_head):
        raise ValueError(
            f"config field head_dim={head_dim} is not supported: heads here share the "
            f"{config.n_embd} channels equally."
        )
    return config


def config_to_transformers(
    config: LlamaConfig,
    dtype: torch.dtype = torch.float32,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict:
    """The content of a ``config.json`` that transformers reads as the same model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": str(dtype).removeprefix("torch."),
        **{theirs: getattr(config, ours) for ours, theirs in LLAMA_FIELDS.items()},
    }


def _unfilled(config: LlamaConfig) -> Llama:
    """A model whose weights are about to be replaced: it must not use up random numbers."""
    with torch.random.fork_rng(devices=[]):
        return Llama(config)


def _load(model: Llama, weights: dict[str, Tensor], source: str) -> Llama:
    """Copy transformers-named weights into the model, every one of them and no other."""
    ours = {_rename(name, to_ours=True): tensor for name, tensor in weights.items()}
    if model.head is None:
        ours.pop("head.weight", None)
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


def from_transformers(hf_model: nn.Module) -> Llama:
    """Our copy of a ``transformers.LlamaForCausalLM``, in the same dtype and on the same device.

    Raises:
        ValueError: another architecture, or a config field that is not supported (named).
    """
    parameter = next(hf_model.parameters())
    config = config_from_transformers(hf_model.config.to_dict())
    model = _unfilled(config).to(parameter.device, parameter.dtype).train(hf_model.training)
    return _load(model, hf_model.state_dict(), type(hf_model).__name__)


def to_transformers(model: Llama) -> nn.Module:
    """A ``transformers.LlamaForCausalLM`` with a copy of the model's weights."""
    from transformers import LlamaConfig as HFConfig
    from transformers import LlamaForCausalLM

    dtype = model.embed.weight.dtype
    config = HFConfig(**config_to_transformers(model.config, dtype))
    with torch.random.fork_rng(devices=[]):
        hf_model = LlamaForCausalLM(config)
    for parameter in hf_model.parameters():  # .to(dtype) would round the rotary frequencies too
        parameter.data = parameter.data.to(dtype)
    weights = {_rename(n, to_ours=False): t for n, t in model.state_dict().items()}
    if model.head is None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
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


def from_pretrained(path_or_hub_id: str | Path, dtype: torch.dtype = torch.float32) -> Llama:
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
    model: Llama,
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
        _rename(name, to_ours=False): tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    fields = config_to_transformers(model.config, dtype, eos_token_id, pad_token_id)
    names = ("model.safetensors", "config.json")
    parts = [folder / f"{name}.part" for name in names]
    try:
        save_file(weights, parts[0], metadata={"format": "pt"})
        parts[1].write_text(json.dumps(fields, indent=2) + "\n")
        for part, name in zip(parts, names, strict=True):
            os.replace(part, folder / name)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
