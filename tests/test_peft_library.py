"""PEFT beside the library peft: forward, gradients and weights after a step, merged weights, files.

The adapters' weights are ours, read over there from our file. With dropout off both are the same
function; peft's own first weights are drawn by torch's global generator, so they are not compared.
Logits and gradients are compared in float64: in float32 the order of products and sums alone moves
logits of size 4 by 1e-6.
"""

import copy
import warnings

import peft
import pytest
import torch
import transformers
from parity_record import Parity
from random_families import build
from torch import nn

from course_lib.models import from_transformers, to_transformers
from course_lib.peft import (
    adapter_rows,
    add_lora,
    add_soft_prompt,
    freeze_except,
    load_adapter,
    lora_layers,
    merge_lora,
    save_adapter,
    unload_lora,
)

TOLERANCE = 1e-6
SIZES = {"vocab_size": 13, "layers": 2, "heads": 2, "width": 4, "inner": 9, "length": 24,
         "tied": True}  # fmt: skip
FAMILIES = {"Llama": "LlamaForCausalLM", "GPT-2": "GPT2LMHeadModel", "BLOOM": "BloomForCausalLM"}
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]])
RIGHT = torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [1, 1, 1, 1, 0]])
SETTINGS = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "LoRA with ranks and alphas by pattern": {
        "rank_pattern": {r".*\.1\..*": 2}, "alpha_pattern": {r".*\.0\..*": 3},
    },
    "LoRA with biases": {"lora_bias": True},
}  # fmt: skip


def base(family: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return build(getattr(transformers, FAMILIES[family]), SIZES, 0).to(dtype)


def adapted(model: nn.Module, name: str = "default", **settings) -> nn.Module:
    """A copy with an adapter none of whose parts is 0."""
    g = torch.Generator().manual_seed(len(name))
    settings = {"target_modules": "all-linear", "r": 3, "lora_alpha": 8} | settings
    return filled(add_lora(copy.deepcopy(model), adapter_name=name, generator=g, **settings), name)


def filled(model: nn.Module, name: str) -> nn.Module:
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for table in (layer.lora_B, layer.lora_bias):
                if name in table:
                    table[name].normal_(std=0.1, generator=g)
    return model


def opened(model: nn.Module, folder, **kwargs) -> peft.PeftModel:
    """peft's model of a folder; what it warns of in our files is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about peft
        warnings.filterwarnings("ignore", message=".*lora_bias=True.*has no bias")
        return peft.PeftModel.from_pretrained(
            copy.deepcopy(model), str(folder), **{"is_trainable": True, **kwargs}
        ).eval()


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def gradients(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    """Name of a layer and part -> gradient."""
    return {name.removeprefix("base_model.model."): p.grad
            for name, p in model.named_parameters() if p.grad is not None}  # fmt: skip


NAMES = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight",
         "lora_bias": "lora_B.default.bias"}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_lora_is_that_of_peft(settings, tmp_path):
    """Logits, gradients, the adapter after a step of SGD, and logits after it."""
    with Parity(f"{settings}: logits, gradients, a step, float64", "peft.LoraConfig",
                TOLERANCE) as parity:  # fmt: skip
        for i, family in enumerate(FAMILIES):
            model = base(family)
            ours = adapted(model, **SETTINGS[settings])
            save_adapter(ours, tmp_path / str(i))
            theirs = opened(model, tmp_path / str(i))
            parity.tried()
            for _ in range(2):
                a, b = ours(IDS).logits, theirs(input_ids=IDS).logits
                assert (a - model(IDS).logits).abs().max() > 0.01
                parity.compare(a.detach(), b.detach())
                loss_of(a).backward(), loss_of(b).backward()
                found, count = gradients(theirs), 0
                for name, layer in lora_layers(ours).items():
                    for part, their_name in NAMES.items():
                        for p in getattr(layer, part).values():
                            parity.compare(p.grad, found[f"{name}.{their_name}"])
                            assert p.grad.abs().max() > 1e-4
                            count += 1
                assert count == len(found)
                for side in (ours, theirs):
                    trained = [p for p in side.parameters() if p.requires_grad]
                    torch.optim.SGD(trained, 0.1).step()
                    side.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_are_those_of_peft(family, tmp_path):
    """Transposed and fused ones too, also of two adapters at once; all else is the base's."""
    model = base(family, torch.float32)
    with Parity(f"Merged LoRA, {family}, every weight", "peft.PeftModel.merge_and_unload",
                TOLERANCE) as parity:  # fmt: skip
        for i, settings in enumerate(({}, {"use_rslora": True})):
            ours = adapted(model, **settings)
            add_lora(ours, 2, 3, "all-linear", adapter_name="second",
                     generator=torch.Generator().manual_seed(3))  # fmt: skip
            filled(ours, "second")
            for name in ("default", "second"):
                save_adapter(ours, tmp_path / f"{i}{name}", name)
            theirs = opened(model, tmp_path / f"{i}default")
            theirs.load_adapter(str(tmp_path / f"{i}second"), "second")
            plain = unload_lora(merge_lora(ours, ["default", "second"]))
            merged = theirs.merge_and_unload(adapter_names=["default", "second"]).state_dict()
            parity.tried()
            assert plain.state_dict().keys() == merged.keys() == model.state_dict().keys()
            for name, weight in plain.state_dict().items():
                parity.compare(weight, merged[name])


def test_rows_with_adapters_of_their_own_are_those_of_peft(tmp_path):
    with Parity("LoRA, an adapter for each row: logits, float64", "peft.PeftModel (adapter_names)",
                TOLERANCE) as parity:  # fmt: skip
        for family in FAMILIES:
            model = base(family)
            ours = adapted(model, "first")
            add_lora(ours, 2, 3, "all-linear", adapter_name="second")
            filled(ours, "second")
            for name in ("first", "second"):
                save_adapter(ours, tmp_path / family / name, name)
            theirs = opened(model, tmp_path / family / "first", adapter_name="first")
            theirs.load_adapter(str(tmp_path / family / "second"), "second")
            theirs.eval()
            parity.tried()
            with adapter_rows(ours, ["second", None, "first"]), torch.no_grad():
                logits = ours(IDS).logits
            with torch.no_grad():
                parity.compare(logits, theirs(
                    input_ids=IDS, adapter_names=["second", "__base__", "first"]
                ).logits)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_read_both_ways_bit_by_bit(family, tmp_path):
    """Ours by peft, what peft then writes by us: every tensor is the same, and the logits."""
    model = base(family, torch.float32)
    for i, settings in enumerate(SETTINGS.values()):
        ours = adapted(model, **settings)
        save_adapter(ours, tmp_path / f"ours{i}")
        theirs = opened(model, tmp_path / f"ours{i}")
        theirs.save_pretrained(str(tmp_path / f"theirs{i}"))
        back = load_adapter(copy.deepcopy(model), tmp_path / f"theirs{i}")
        assert torch.equal(back(IDS).logits, ours(IDS).logits)
        assert back.state_dict().keys() == ours.state_dict().keys()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, back.state_dict()[name]), name
        for name, layer in lora_layers(ours).items():
            assert lora_layers(back)[name].settings == layer.settings


def test_an_adapter_that_peft_made_is_read(tmp_path):
    """With its own targets and first weights, B drawn too."""
    model = base("GPT-2")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn", "c_fc"],
                             init_lora_weights=False, rank_pattern={"c_fc": 2},
                             fan_in_fan_out=True, task_type="CAUSAL_LM")  # fmt: skip
    theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = load_adapter(copy.deepcopy(model), tmp_path)
    assert {layer.settings["default"].r for layer in lora_layers(ours).values()} == {3, 2}
    torch.testing.assert_close(ours(IDS).logits, theirs(input_ids=IDS).logits, atol=1e-6, rtol=0)
    assert (ours(IDS).logits - model(IDS).logits).abs().max() > 0.01


def test_an_adapter_of_our_model_is_read_beside_its_copy_over_there(tmp_path):
    """Our Llama's q is their q_proj; and back onto ours, and onto theirs by us. The tolerance is
    that of the two models, whose tables of rotary positions are float32."""
    with Parity("LoRA of our Llama, through a file: logits, float64",
                "peft.PeftModel on LlamaForCausalLM", 1e-5) as parity:  # fmt: skip
        mine = from_transformers(base("Llama"))
        ours = adapted(mine, target_modules=["q", "v", "gate", "down"])
        save_adapter(ours, tmp_path)
        theirs = opened(to_transformers(mine), tmp_path)
        parity.tried()
        parity.compare(ours(IDS).logits.detach(), theirs(input_ids=IDS).logits.detach())
        theirs.save_pretrained(str(tmp_path / "again"))
        for folder in (tmp_path, tmp_path / "again"):
            back = load_adapter(copy.deepcopy(mine), folder)
            assert torch.equal(back(IDS).logits, ours(IDS).logits)
        there = load_adapter(to_transformers(mine), tmp_path)
        parity.compare(there(IDS).logits.detach(), theirs(input_ids=IDS).logits.detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_our_q_and_v_is_one_of_their_fused_layer(family, tmp_path):
    """Our GPT-2's and BLOOM's q and v, and the q_proj and v_proj of Llama."""
    mine = from_transformers(base(family))
    ours = adapted(mine, target_modules=["q", "v", "up"], rank_pattern={"q": 2})
    save_adapter(ours, tmp_path)
    theirs = opened(to_transformers(mine), tmp_path)
    torch.testing.assert_close(ours(IDS).logits, theirs(input_ids=IDS).logits, atol=1e-5, rtol=0)
    assert (ours(IDS).logits - mine(IDS).logits).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soft_prompt_is_that_of_peft(family, tmp_path):
    """Logits of the tokens, the gradient, the vectors after a step; alone and padded on the right.
    Padded on the left, peft's learnt positions count the padding, and ours do not."""
    model = base(family)
    with Parity(f"Prompt tuning, {family}: logits, gradient, a step, float64",
                "peft.PromptTuningConfig", TOLERANCE) as parity:  # fmt: skip
        for i, mask in enumerate((torch.ones_like(IDS), RIGHT)):
            ours = add_soft_prompt(copy.deepcopy(model), 3, init=[4, 7])
            save_adapter(ours, tmp_path / str(i))
            theirs = opened(model, tmp_path / str(i), is_trainable=False)
            theirs.prompt_encoder.double()  # it keeps vectors in float32
            their_vectors = theirs.prompt_encoder["default"].embedding.weight.requires_grad_(True)
            parity.tried()
            for _ in range(2):
                a = ours(IDS, mask).logits
                b = theirs(input_ids=IDS, attention_mask=mask).logits[:, 3:]
                kept = mask.bool()
                parity.compare(a[kept].detach(), b[kept].detach())
                assert (a - model(IDS).logits).abs().max() > 0.01
                for logits in (a, b):
                    nn.functional.cross_entropy(logits[kept], IDS[kept]).backward()
                parity.compare(ours.prompt.grad, their_vectors.grad)
                assert ours.prompt.grad.abs().max() > 1e-4
                for p in (ours.prompt, their_vectors):
                    torch.optim.SGD([p], 0.1).step()
                    p.grad = None
            theirs.save_pretrained(str(tmp_path / "theirs"))
            back = load_adapter(copy.deepcopy(model), tmp_path / "theirs")
            assert torch.equal(back.prompt, their_vectors)


def test_text_starts_a_soft_prompt_as_in_peft(tmp_path):
    """Five vectors of the ids 4 7 are 4 7 4 7 4; one vector is 4."""
    embed = base("Llama", torch.float32).get_input_embeddings()
    for n, ids in ((5, [4, 7, 4, 7, 4]), (1, [4])):
        config = peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=n, prompt_tuning_init="TEXT",
            prompt_tuning_init_text="x", tokenizer_name_or_path="x", token_dim=8,
            num_transformer_submodules=1, num_layers=2, num_attention_heads=2,
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transformers.AutoTokenizer, "from_pretrained",
                          lambda *_, **__: lambda text: {"input_ids": [4, 7]})  # fmt: skip
            width = embed.weight.shape[1]
            config.token_dim = width
            theirs = peft.PromptEmbedding(config, embed).embedding.weight
        ours = add_soft_prompt(base("Llama", torch.float32), n, init=[4, 7])
        assert torch.equal(ours.prompt, theirs) and torch.equal(ours.prompt, embed.weight[ids])


@pytest.mark.parametrize("family", ["GPT-2", "BLOOM"])
def test_biases_and_norms_are_those_that_peft_trains(family):
    """BitFit is peft's ``bias="all"``, its LoRA left at 0; norms are its LNTuningConfig. The same
    names, gradients, and weights after a step of SGD."""
    model = base(family)
    ends = {name.rpartition(".")[2] for name, m in model.named_modules()
            if isinstance(m, nn.LayerNorm)}  # fmt: skip
    configs = {
        "biases": peft.LoraConfig(r=1, target_modules="all-linear", bias="all",
                                  fan_in_fan_out=family == "GPT-2"),
        "norms": peft.LNTuningConfig(target_modules=sorted(ends)),
    }  # fmt: skip
    with Parity(f"Biases or norms alone, {family}: gradients, a step, float64",
                "peft.LoraConfig (bias), peft.LNTuningConfig", TOLERANCE) as parity:  # fmt: skip
        for part, config in configs.items():
            ours = freeze_except(copy.deepcopy(model), part)
            theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
            parity.tried()
            loss_of(ours(IDS).logits).backward()
            loss_of(theirs(input_ids=IDS).logits).backward()
            wanted = {
                name.removeprefix("base_model.model.").replace(".base_layer", "")
                .replace(".ln_tuning_layers.default", ""): p
                for name, p in theirs.named_parameters() if p.requires_grad and "lora_" not in name
            }  # fmt: skip
            mine = {name: p for name, p in ours.named_parameters() if p.requires_grad}
            assert mine.keys() == wanted.keys() and len(mine) > 8
            for side in (mine, wanted):
                torch.optim.SGD(side.values(), 0.1).step()
            for name, p in mine.items():
                parity.compare(p.grad, wanted[name].grad)
                parity.compare(p.detach(), wanted[name].detach())
                assert not torch.equal(p, model.get_parameter(name))
