"""Configs across the border: the content of transformers' ``config.json``, read and written.

Fields that change the computation and that these models do not have are refused by name.
"""

import json
from dataclasses import replace

import torch

from course_lib.models.base import Config
from course_lib.models.families import FAMILIES, FIXED, WITHOUT_EFFECT, Family


def family_of(config: Config) -> Family:
    """The family whose config it is."""
    return next(family for family in FAMILIES.values() if family.config is type(config))


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


def _means_nothing_new(kind: str, unknown: dict) -> dict:
    """Those of the unknown fields whose value changes nothing: None, or transformers' default.

    Files written before a field existed lack it and get its default, which must therefore mean
    the computation that there was before.
    """
    harmless = {name: value for name, value in unknown.items() if value is None}
    if len(harmless) < len(unknown):
        try:
            from transformers import AutoConfig
        except ImportError:
            return harmless
        defaults = json.loads(json.dumps(AutoConfig.for_model(kind).to_dict(), default=str))
        for name, value in unknown.items():
            if name in defaults and defaults[name] == value:
                harmless[name] = value
    return harmless


def config_from_transformers(fields: dict) -> Config:
    """Our config from the content of a ``config.json``.

    Fields that we do not know, with the value that transformers gives them by default, are
    ignored: a newer transformers writes more fields than an older one.

    Raises:
        ValueError: a field (named) that is missing, unknown, or whose value is not supported.
    """
    kind = fields.get("model_type")
    if kind not in FAMILIES:
        _refuse("model_type", kind, *FAMILIES)
    family, values = FAMILIES[kind], {}
    fixed = {**FIXED, **family.fixed}
    for name, value in fixed.items():
        if fields.get(name, value) != value:
            _refuse(name, fields[name], value)
    known = {theirs for _, theirs in family.fields} | {*fixed, *family.special, *WITHOUT_EFFECT}
    unknown = {name: value for name, value in fields.items() if name not in known}
    if refused := sorted(set(unknown) - set(_means_nothing_new(kind, unknown))):
        raise ValueError(
            f"unknown config fields {refused}, with values that are not transformers' defaults: "
            "they might change what the model computes, so the model is not loaded. Load it with "
            "transformers instead."
        )
    architecture = (fields.get("architectures") or family.classes)[0]
    if architecture not in family.classes:
        _refuse("architectures", architecture, *family.classes)
    given = {name: x for name, x in fields.items() if x is not None}
    read = {"tie_word_embeddings": True, **family.defaults, **given}
    for ours, theirs in family.fields:
        if theirs in read and values.setdefault(ours, read[theirs]) != read[theirs]:
            _refuse(theirs, read[theirs], values[ours])
    if missing := [theirs for ours, theirs in family.fields if ours not in values]:
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


def config_to_transformers(config, dtype=torch.float32, eos_token_id=None, pad_token_id=None):
    """The content of a ``config.json``, a dict, that transformers reads as the same model."""
    family, n_label = family_of(config), config.n_label
    fields = {
        "architectures": [family.classes[1 if n_label else 0]],
        "model_type": family.kind,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "dtype": str(dtype).removeprefix("torch."),
        **family.fixed,
        **{theirs: getattr(config, ours) for ours, theirs in family.fields},
        **_write_special(family.kind, config),
    }
    if n_label:
        fields["id2label"] = {i: f"LABEL_{i}" for i in range(n_label)}
        fields["label2id"] = {f"LABEL_{i}": i for i in range(n_label)}
    return fields
