"""Fields that a newer transformers adds to a config.json: harmless by default, else refused."""

import builtins
import json

import pytest
import transformers
from random_models import llama

from course_lib.models import from_pretrained, save_pretrained
from course_lib.models.configs import config_from_transformers, config_to_transformers


def newer(monkeypatch, kind: str, **fields) -> None:
    """transformers as a later version might be: its configs of this kind have more fields."""
    cls = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    plain = cls.to_dict
    monkeypatch.setattr(cls, "to_dict", lambda self: {**fields, **plain(self)})


NEW = {"residual_scale": 1.0, "attention_sinks": False, "layer_kinds": ["full"], "window": None}


def test_new_fields_with_their_defaults_are_read(monkeypatch, tmp_path):
    """A field that older files lack means, by default, the computation that there was before it."""
    newer(monkeypatch, "llama", **NEW)
    save_pretrained(llama(), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, **NEW}))
    assert from_pretrained(tmp_path).config == llama().config


@pytest.mark.parametrize(
    ("field", "value"),
    [("residual_scale", 0.5), ("attention_sinks", True), ("layer_kinds", ["sliding"]),
     ("window", 128)],
)  # fmt: skip
def test_a_new_field_with_another_value_is_refused_by_name(monkeypatch, field, value):
    newer(monkeypatch, "llama", **NEW)
    fields = {**config_to_transformers(llama().config), **NEW, field: value}
    with pytest.raises(ValueError, match=rf"unknown config fields \['{field}'\], .*not transf"):
        config_from_transformers(fields)


def test_defaults_are_those_of_the_same_kind(monkeypatch):
    """What BERT has by default says nothing about Llama."""
    newer(monkeypatch, "bert", residual_scale=1.0)
    fields = {**config_to_transformers(llama().config), "residual_scale": 1.0}
    with pytest.raises(ValueError, match="unknown config fields"):
        config_from_transformers(fields)


def test_without_transformers_only_a_field_that_is_not_set_is_harmless(monkeypatch):
    real = builtins.__import__

    def no_transformers(name, *args, **kwargs):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    fields = config_to_transformers(llama().config)
    monkeypatch.setattr(builtins, "__import__", no_transformers)
    assert config_from_transformers({**fields, "window": None}) == llama().config
    with pytest.raises(ValueError, match=r"unknown config fields \['attention_sinks'\]"):
        config_from_transformers({**fields, "attention_sinks": False, "window": None})


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "bloom", "llama", "t5", "bart"])
def test_every_field_of_todays_transformers_is_read_with_its_default(kind):
    """All of to_dict(): those that change the computation must be known, the others may be new."""
    fields = transformers.AutoConfig.for_model(kind).to_dict()
    assert config_from_transformers({**fields, "architectures": None}).vocab_size > 1000
