"""Adapters on the disk: what is written, what is refused. peft reads them in test_peft_library."""

import copy
import json

import pytest
import torch
import transformers
from peft_models import MODELS, SIZES, base
from random_families import build
from random_models import llama
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from course_lib.adapter_files import FILES, base_fingerprint, load_adapter, save_adapter
from course_lib.bottleneck import add_adapters
from course_lib.lora import add_lora, lora_layers, merge_lora, use_adapter
from course_lib.models import from_transformers
from course_lib.soft_prompts import add_soft_prompt

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def adapted(model: nn.Module, targets="all-linear", name: str = "default", **settings):
    g = torch.Generator().manual_seed(1)
    add_lora(model, 2, 3, targets, adapter_name=name, generator=g, **settings)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            if name in layer.lora_B:
                layer.lora_B[name].normal_(std=0.3, generator=g)
    return model


def edit(folder, **fields) -> None:
    path = folder / FILES[0]
    changed = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(changed), encoding="utf-8")


# --- written ------------------------------------------------------------------------------------


def test_the_files_by_hand(tmp_path):
    """q of block 0 alone: two tensors under transformers' names, rank 2, alpha 3."""
    model = adapted(llama(), ["blocks.0.attention.q"], lora_dropout=0.1)
    save_adapter(model, tmp_path, base_model="somebody/base")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    weights = load_file(tmp_path / FILES[1])
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    assert {name: tuple(x.shape) for name, x in weights.items()} == {
        f"{q}.lora_A.weight": (2, 24), f"{q}.lora_B.weight": (24, 2)
    }  # fmt: skip
    fields = json.loads((tmp_path / FILES[0]).read_text(encoding="utf-8"))
    wanted = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 3, "bias": "none",
        "lora_dropout": 0.1, "use_rslora": False, "rank_pattern": {}, "fan_in_fan_out": False,
        "target_modules": ["model.layers.0.self_attn.q_proj"], "inference_mode": True,
        "base_model_name_or_path": "somebody/base",
    }  # fmt: skip
    assert {name: fields[name] for name in wanted} == wanted
    with safe_open(tmp_path / FILES[1], "pt") as file:
        assert file.metadata() == {"format": "pt", "base_fingerprint": base_fingerprint(llama())}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read(name, tmp_path):
    """Of several adapters the one that is named, with its ranks and alphas by pattern; settings,
    weights and logits are the same bit for bit. Merged or not, the file is the same."""
    model = adapted(base(name), name="other")
    adapted(model, "all-linear", "mine", rank_pattern={r".*\.1\..*": 3}, use_rslora=True,
            alpha_pattern={r".*\.0\..*": 5}, lora_bias=True)  # fmt: skip
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_bias["mine"].normal_()
    save_adapter(merge_lora(copy.deepcopy(model)), tmp_path, "mine")
    found = load_adapter(base(name), tmp_path, "again")
    assert torch.equal(found(IDS).logits, model(IDS).logits)
    for layer, own in zip(lora_layers(found).values(), lora_layers(model).values(), strict=True):
        assert layer.settings == {"again": own.settings["mine"]} and layer.active == ("again",)
    use_adapter(model, "other")
    assert (found(IDS).logits - model(IDS).logits).abs().max() > 0.01
    trained = {n for n, p in found.named_parameters() if p.requires_grad}
    assert trained and all(n.endswith(".again") for n in trained)


@pytest.mark.parametrize("name", MODELS)
def test_a_soft_prompt_is_written_and_read(name, tmp_path):
    model = add_soft_prompt(base(name), 3, generator=torch.Generator().manual_seed(0))
    save_adapter(model, tmp_path)
    assert set(load_file(tmp_path / FILES[1])) == {"prompt_embeddings"}
    fields = json.loads((tmp_path / FILES[0]).read_text(encoding="utf-8"))
    assert fields["num_virtual_tokens"] == 3 and fields["num_layers"] == 2
    assert torch.equal(load_adapter(base(name), tmp_path)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("name", MODELS[2:])
@pytest.mark.parametrize("targets", [["q", "up"], ["k"], ["q", "k", "v"], ["v", "down", "out"]])
@pytest.mark.parametrize("settings", [
    {}, {"use_rslora": True, "lora_bias": True},
    {"rank_pattern": {"k": 3, "v": 1}, "alpha_pattern": {"v": 5}},
])  # fmt: skip
def test_parts_of_a_fused_layer_become_one_adapter_and_come_back(name, targets, settings, tmp_path):
    """q, k and v of our GPT-2 and BLOOM are one layer over there. One adapter does there what those
    of the parts do here, whatever their ranks and alphas; read again, each has its own rank."""
    settings = {key: {p: v for p, v in value.items() if p in targets} if "pattern" in key else value
                for key, value in settings.items()}  # fmt: skip
    theirs = base(name).double()
    ours = from_transformers(theirs)
    model = adapted(copy.deepcopy(ours), targets, **settings)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for bias in layer.lora_bias.values():
                bias.normal_()
    save_adapter(model, tmp_path)
    want = model(IDS).logits
    assert (want - ours(IDS).logits).abs().max() > 0.01
    for other in (copy.deepcopy(ours), theirs):
        torch.testing.assert_close(load_adapter(other, tmp_path)(IDS).logits, want,
                                   atol=1e-6, rtol=0)  # fmt: skip
    found = lora_layers(load_adapter(ours, tmp_path))
    assert found.keys() == lora_layers(model).keys()
    for n, layer in lora_layers(model).items():
        (old,), (new,) = layer.settings.values(), found[n].settings.values()
        assert new.r == old.r and torch.equal(found[n].lora_A["default"], layer.lora_A["default"])


def test_an_adapter_of_a_fused_layer_is_split(tmp_path):
    """One of c_attn, which adds something to q, k and v alike, becomes three of its rank; one that
    adds nothing yet becomes three, too."""
    for fill in (True, False):
        theirs = base("GPT2LMHeadModel").double()
        adapted(theirs, ["c_attn"])
        if not fill:
            for layer in lora_layers(theirs).values():
                nn.init.zeros_(layer.lora_B["default"])
        save_adapter(theirs, tmp_path)
        ours = load_adapter(from_transformers(base("GPT2LMHeadModel").double()), tmp_path)
        assert [n.rpartition(".")[2] for n in lora_layers(ours)] == [*"qkv"] * 2
        assert {layer.settings["default"].r for layer in lora_layers(ours).values()} == {2}
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-6, rtol=0)


def test_what_cannot_be_written_is_told(tmp_path):
    for model in (llama(), add_adapters(llama(), 2)):
        with pytest.raises(ValueError, match="no adapter 'default': the model has none"):
            save_adapter(model, tmp_path)
    model = adapted(llama(), ["q", "k"])
    first = next(iter(lora_layers(model).values()))
    first.settings["default"] = type(first.settings["default"])(2, 3, use_rslora=True)
    with pytest.raises(ValueError, match="differ in use_rslora"):
        save_adapter(model, tmp_path)


def test_a_stop_leaves_the_old_files(tmp_path, monkeypatch):
    """The disk is full when the second adapter is written: the first is still there, whole."""
    model = adapted(llama(), ["q"])
    save_adapter(model, tmp_path)
    before = [(tmp_path / name).read_bytes() for name in FILES]

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("course_lib.adapter_files.save_file", full)
    with pytest.raises(OSError):
        save_adapter(adapted(model, ["k"], "b"), tmp_path, "b")
    assert [(tmp_path / name).read_bytes() for name in FILES] == before
    assert len(list(tmp_path.iterdir())) == 2


# --- the base -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "BloomForCausalLM"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_fingerprint_is_the_base_s(name, tied):
    """Ours and theirs have the same; adapters, soft prompts and merging leave it; one bit of a
    weight, another type or another name does not."""
    theirs = build(getattr(transformers, name), SIZES | {"tied": tied}, 0)
    ours = from_transformers(theirs)
    found = base_fingerprint(ours)
    assert base_fingerprint(theirs) == found and len(found) == 64
    for model in (ours, theirs):
        for change in (lambda m: merge_lora(adapted(m)), lambda m: add_adapters(m, 2),
                       lambda m: add_soft_prompt(m, 2)):  # fmt: skip
            assert base_fingerprint(change(copy.deepcopy(model))) == found
    for other in (copy.deepcopy(ours).double(), build(type(theirs), SIZES | {"tied": tied}, 1)):
        assert base_fingerprint(other) != found
    with torch.no_grad():
        weight = next(iter(ours.parameters()))
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    assert base_fingerprint(ours) != found


def test_another_base_is_refused(tmp_path):
    """Of the same shape with other weights, unless it is wanted; nothing is changed."""
    save_adapter(adapted(llama(0)), tmp_path / "lora", base_model="the base")
    save_adapter(add_soft_prompt(llama(0), 2), tmp_path / "prompt")
    for folder, named in (("lora", r"\(the base\)"), ("prompt", r"\(unnamed\)")):
        other = llama(1)
        with pytest.raises(ValueError, match=f"fingerprint [0-9a-f]{{12}}, and this.*{named}"):
            load_adapter(other, tmp_path / folder)
        assert not lora_layers(other) and all(p.requires_grad for p in other.parameters())
        load_adapter(other, tmp_path / folder, check_base=False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: llama(n_layer=1), r"model.layers.1.*\(7 layers in all that Llama lacks\)"),
        (lambda: llama(n_embd=16), r"lora_A \(2, 24\).*asks for \(r, 16\)"),
        (lambda: llama(n_inner=21), r"gate_proj has lora_A .* lora_B \(20, 2\).*\(21, r\)"),
        (lambda: build(transformers.GPT2LMHeadModel, SIZES, 0), "14 layers in all that GPT2LM"),
    ],
)
def test_another_shape_is_refused_before_anything_is_changed(model, message, tmp_path):
    save_adapter(adapted(llama()), tmp_path)
    model = model()
    with pytest.raises(ValueError, match=message):
        load_adapter(model, tmp_path, check_base=False)
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())


def test_a_name_that_is_taken_is_refused(tmp_path):
    model = adapted(llama())
    save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        load_adapter(model, tmp_path)
    assert torch.equal(load_adapter(model, tmp_path, "b")(IDS).logits, model(IDS).logits)


# --- what others wrote --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"bias": "all"}, {"use_dora": True}, {"modules_to_save": ["head"]},
               {"layer_replication": [[0, 1]]}, {"peft_type": "IA3"}, {"peft_type": None}]
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(fields, tmp_path):
    save_adapter(adapted(llama()), tmp_path)
    edit(tmp_path, **{"use_dora": False, "modules_to_save": []})
    load_adapter(llama(), tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(ValueError, match=next(iter(fields))):
        load_adapter(llama(), tmp_path)


def test_unknown_tensors_are_refused_by_name(tmp_path):
    save_adapter(adapted(llama()), tmp_path)
    weights = load_file(tmp_path / FILES[1])
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    for extra in (f"{q}.lora_magnitude_vector.weight", "model.layers.0.mlp.up_proj.lora_A.weight"):
        save_file(weights | {extra: torch.zeros(1)}, tmp_path / FILES[1])
        with pytest.raises(ValueError, match=f"{extra} is no part of a LoRA adapter"):
            load_adapter(llama(), tmp_path)
    del weights[f"{q}.lora_B.weight"]
    save_file(weights, tmp_path / FILES[1])
    with pytest.raises(ValueError, match=r"q_proj has lora_A \(2, 24\) and lora_B \(0,\)"):
        load_adapter(llama(), tmp_path)
    save_adapter(add_soft_prompt(llama(), 2), tmp_path)
    with pytest.raises(ValueError, match=r"expected prompt_embeddings \(P, 16\) alone, got"):
        load_adapter(llama(n_embd=16), tmp_path, check_base=False)


def test_damaged_files_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no adapter_config.json"):
        load_adapter(llama(), tmp_path)
    save_adapter(adapted(llama()), tmp_path)
    data = (tmp_path / FILES[1]).read_bytes()
    (tmp_path / FILES[1]).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is damaged .*fetch it again"):
        load_adapter(llama(), tmp_path)
    (tmp_path / FILES[1]).unlink()
    with pytest.raises(FileNotFoundError, match="has no adapter_model.safetensors"):
        load_adapter(llama(), tmp_path)
    save_adapter(adapted(llama()), tmp_path)
    for text in ("{", "[1]"):
        (tmp_path / FILES[0]).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="is damaged"):
            load_adapter(llama(), tmp_path)
