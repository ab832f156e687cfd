"""LoRA on whole models: added, trained, chosen, merged, taken off, combined."""

import copy
import math
import warnings

import pytest
import torch
from peft_models import MODELS, base, generator
from random_models import llama
from torch import nn

from course_lib.adapter_files import load_adapter, save_adapter
from course_lib.lora import (
    adapter_names,
    add_lora,
    combine_adapters,
    lora_layers,
    merge_lora,
    unload_lora,
    unmerge_lora,
    use_adapter,
)
from course_lib.models import from_pretrained, from_transformers, save_pretrained
from course_lib.ops import token_logprobs
from course_lib.optim import muon_adamw
from course_lib.training import train
from course_lib.wrapped_linear import base_parameters, disabled

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
models = pytest.mark.parametrize("name", MODELS)


def fill(model: nn.Module, std: float = 0.1) -> nn.Module:
    """B of every adapter, so that each shows."""
    g = generator(5)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for B in layer.lora_B.values():
                B.normal_(std=std, generator=g)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def loss_fn(model: nn.Module, batch: dict) -> torch.Tensor:
    return -token_logprobs(model(batch["input_ids"]).logits, batch["input_ids"]).mean()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


# --- added --------------------------------------------------------------------------------------


@models
def test_at_first_nothing_changes_but_the_adapter_is_trained(name):
    """Bit for bit; the base's names are where they were, and two tensors a layer are added."""
    model = base(name)
    before, keys = logits(model), list(model.state_dict())
    assert add_lora(model, 4, 8, "all-linear", generator=generator()) is model
    assert torch.equal(logits(model), before)
    state = model.state_dict()
    assert [key for key in state if "lora_" not in key] == keys
    assert len(state) - len(keys) == 2 * len(lora_layers(model)) > 0
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {key for key in state if "lora_" in key}


@models
def test_frozen_weights_stay_bit_for_bit(name):
    """Three steps of the training loop; the adapter moves, and so do the logits."""
    model = add_lora(base(name), 2, 4, "all-linear", generator=generator())
    before = {n: p.clone() for n, p in base_parameters(model).items()}
    start, batches = logits(model), [{"input_ids": IDS}] * 3
    history = train(model, batches, loss_fn, max_steps=3, lr=0.05, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(torch.equal(p, before[n]) for n, p in base_parameters(model).items())
    assert (logits(model) - start).abs().max() > 0.01
    with disabled(model):
        assert torch.equal(logits(model), start)


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BartForConditionalGeneration",
                                  "BertForMaskedLM", "RobertaForMaskedLM"])  # fmt: skip
def test_encoders_and_encoder_decoders_too(name, tmp_path):
    """Theirs and ours: all linear layers, merged, and ours through a file onto theirs."""
    theirs = base(name).double()
    ours = from_transformers(theirs)
    more = {"decoder_input_ids": IDS} if hasattr(ours.config, "start_token_id") else {}
    for model in (ours, theirs):
        with torch.no_grad():
            before = model(IDS, **more).logits
            model = fill(add_lora(copy.deepcopy(model), 2, 4, "all-linear", generator=generator()))
            apart = model(IDS, **more).logits
            assert (apart - before).abs().max() > 0.01
            close(merge_lora(model)(IDS, **more).logits, apart)
            if isinstance(model, type(ours)):
                save_adapter(model, tmp_path)
                found = load_adapter(copy.deepcopy(theirs), tmp_path, check_base=False)
                close(found(IDS, **more).logits, apart)


def test_a_killed_run_goes_on_with_its_adapter(tmp_path):
    """Three steps at once, and two and then one from the checkpoint, end alike."""
    runs = []
    for stops in ((3,), (2, 3)):
        for steps in stops:
            model = add_lora(llama(), 2, 4, ["q", "v"], lora_dropout=0.2, generator=generator())
            torch.manual_seed(0)
            train(model, [{"input_ids": IDS}] * 3, loss_fn, max_steps=steps, lr=0.05,
                  schedule="constant", progress=False, checkpoint_dir=tmp_path / str(len(stops)))
        runs.append(model.state_dict())
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(x, runs[1][key]) for key, x in runs[0].items())


def test_muon_takes_what_is_trained_alone():
    model = add_lora(llama(), 2, 4, ["q"])
    taken = {id(p) for group in muon_adamw(model).param_groups for p in group["params"]}
    assert taken == {id(p) for p in model.parameters() if p.requires_grad}


def test_ranks_and_alphas_by_pattern():
    """Global r 8, alpha 16; up has rank 4 and keeps alpha 16: 4, not 2. The first pattern that
    matches counts: of block 1, q has alpha 3. A pattern is for the end of a name."""
    model = add_lora(
        llama(), 8, 16, ["up", "q", "k"], rank_pattern={"up": 4},
        alpha_pattern={r"blocks\.1\.attention\.q": 3, r"q": 24},
    )  # fmt: skip
    found = {n: m.settings["default"] for n, m in lora_layers(model).items()}
    scalings = {n: s.scaling for n, s in found.items()}
    assert scalings == {
        "blocks.0.attention.q": 3, "blocks.0.attention.k": 2, "blocks.0.feed_forward.up": 4,
        "blocks.1.attention.q": 3 / 8, "blocks.1.attention.k": 2, "blocks.1.feed_forward.up": 4,
    }  # fmt: skip
    assert lora_layers(model)["blocks.1.feed_forward.up"].lora_A["default"].shape == (4, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r": 0}, "r=0 must be a whole number of at least 1"),
        ({"lora_alpha": 0}, "lora_alpha=0"),
        ({"target_modules": ["query"]}, "'query' matches no.*match end in down, gate, k, out"),
        ({"rank_pattern": {"up": 4}}, "rank_pattern: 'up' matches none.*end in q, v"),
        ({"rank_pattern": {"q": 0}}, "r=0"),
        ({"alpha_pattern": {"attention": 4}}, "alpha_pattern: 'attention' matches none"),
        ({"adapter_name": "a.b"}, "cannot be a name"),
        ({"adapter_name": ""}, "cannot be a name"),
        ({"adapter_name": "keys"}, "cannot be a name"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(arguments, message):
    model = llama()
    arguments = {"r": 2, "lora_alpha": 4, "target_modules": ["q", "v"]} | arguments
    with pytest.raises(ValueError, match=message):
        add_lora(model, **arguments)
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())


def test_copies_and_types_go_along():
    """A deep copy computes the same and shares nothing; so does a copy in float64."""
    model = fill(add_lora(llama(), 2, 4, "all-linear", generator=generator()))
    merge_lora(model)
    other = copy.deepcopy(model)
    assert torch.equal(logits(other), logits(model))
    for p in other.parameters():
        p.data.zero_()
    assert logits(model).abs().max() > 1
    wide = copy.deepcopy(model).double()
    assert logits(wide).dtype == torch.float64
    close(logits(wide).float(), logits(model))
    again = add_lora(llama(1), 2, 4, "all-linear")
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), logits(unmerge_lora(model)))


@pytest.mark.parametrize("name", MODELS[1:])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    found = []
    for checkpointing in (False, True):
        model = fill(add_lora(base(name), 2, 4, "all-linear", generator=generator())).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no cache is kept
            loss_fn(model, {"input_ids": IDS}).backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*found, strict=True):
        assert a.abs().max() > 0
        close(a, b)


# --- merged -------------------------------------------------------------------------------------


@models
def test_merging_again_and_again(name):
    """Merged, merged twice, unmerged, merged again: the outputs stay within 1e-6 (in float64), the
    weights within 0; and the base comes back bit for bit."""
    model = fill(add_lora(base(name).double(), 4, 8, "all-linear", generator=generator()), 0.3)
    before = {n: p.clone() for n, p in base_parameters(model).items()}
    apart = logits(model)
    with disabled(model):
        plain = logits(model)
    assert (apart - plain).abs().max() > 0.01
    for step in (merge_lora, merge_lora, unmerge_lora, merge_lora, unmerge_lora, unmerge_lora):
        assert step(model) is model
        torch.testing.assert_close(logits(model), apart, atol=1e-6, rtol=0)
        with disabled(model):
            assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), apart)
    assert all(torch.equal(p, before[n]) for n, p in base_parameters(model).items())


@models
def test_taken_off_a_plain_model_is_left(name):
    """As it was, or with what was merged; of the same classes and names."""
    model, plain = base(name), base(name)
    fill(add_lora(model, 4, 8, "all-linear", generator=generator()))
    merged = logits(merge_lora(copy.deepcopy(model)))
    off = unload_lora(copy.deepcopy(model))
    assert torch.equal(logits(off), logits(plain))
    found = unload_lora(merge_lora(model))
    assert torch.equal(logits(found), merged)
    for one in (off, found):
        assert [*map(type, one.modules())] == [*map(type, plain.modules())]
        assert one.state_dict().keys() == plain.state_dict().keys()


def test_a_merged_model_is_saved_and_one_with_adapters_is_not(tmp_path):
    model = fill(add_lora(llama(), 4, 8, ["q"], generator=generator()))
    with pytest.raises(ValueError, match="lora_A.*Merge or take off"):
        save_pretrained(model, tmp_path)
    merged = logits(merge_lora(model))
    save_pretrained(unload_lora(model), tmp_path)
    assert torch.equal(logits(from_pretrained(tmp_path)), merged)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_tied_embeddings_are_not_changed_by_a_merge(name, tmp_path):
    """LoRA on the output matrix, which is the embeddings' too: merged, tokens still come in by the
    old one. Taken off, the output matrix is one of its own, and a file of it says so."""
    model = base(name)
    embed = model.get_input_embeddings().weight
    assert model.lm_head.weight is embed
    before = embed.detach().clone()
    fill(add_lora(model, 4, 8, ["lm_head"], generator=generator()), 0.3)
    apart = logits(model)
    close(logits(merge_lora(model)), apart)
    assert torch.equal(embed, before) and model.lm_head.weight is embed
    unload_lora(model)
    close(logits(model), apart)
    assert model.get_input_embeddings().weight is embed and torch.equal(embed, before)
    assert model.lm_head.weight is not embed and not model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    close(logits(type(model).from_pretrained(tmp_path)), apart)


def test_other_layers_leave_the_tie_alone():
    model = fill(add_lora(base("GPT2LMHeadModel"), 4, 8, ["c_attn"]))
    unload_lora(merge_lora(model))
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_rounding_that_takes_the_update_is_told():
    """Updates of about 1e-4 beside weights of about .2, which bfloat16 keeps to 1e-3."""
    model = fill(add_lora(llama().bfloat16(), 4, 4, ["q"], generator=generator()), 1e-4)
    with pytest.warns(UserWarning, match=r"Rounding to torch.bfloat16 took \d+% .*model.float"):
        merge_lora(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge_lora(unmerge_lora(model).float())


def test_merging_needs_an_adapter():
    with pytest.raises(ValueError, match="no active adapter to merge"):
        merge_lora(llama())
    model = add_lora(llama(), 2, 4, ["q"])
    with pytest.raises(ValueError, match="no adapter 'other': the model has 'default'"):
        merge_lora(model, "other")
    use_adapter(model, None)
    with pytest.raises(ValueError, match="no active adapter"):
        merge_lora(model)


def test_a_merged_model_is_not_changed_by_the_way():
    model = merge_lora(fill(add_lora(llama(), 2, 4, ["q"])))
    for change in (lambda: use_adapter(model, None),
                   lambda: add_lora(model, 2, 4, ["v"], adapter_name="b")):  # fmt: skip
        with pytest.raises(ValueError, match="default is merged into the weights: unmerge_lora"):
            change()
    assert adapter_names(model) == ["default"]


# --- several ------------------------------------------------------------------------------------


def two() -> nn.Module:
    """Adapters a on q and v, b on v and up, B filled."""
    model = add_lora(llama(), 2, 4, ["q", "v"], adapter_name="a", generator=generator(1))
    add_lora(model, 3, 4, ["v", "up"], adapter_name="b", generator=generator(2))
    return fill(model, 0.3)


def test_each_adapter_is_what_it_is_alone():
    """Beside the other one it computes as without it, whichever is chosen first."""
    model = two()
    assert adapter_names(model) == ["a", "b"]
    for name, other in (("a", "b"), ("b", "a")):
        alone = copy.deepcopy(model)
        for layer in lora_layers(alone).values():
            if other in layer.settings:
                nn.init.zeros_(layer.lora_B[other])
        use_adapter(alone, ["a", "b"])
        use_adapter(model, name)
        close(logits(model), logits(alone))
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        assert len(trained) == 8 and all(n.endswith(f".{name}") for n in trained)
    use_adapter(model, None)
    assert torch.equal(logits(model), logits(llama()))
    assert not any(p.requires_grad for p in model.parameters())


def test_training_one_leaves_the_other_bit_for_bit():
    model = two()
    use_adapter(model, "a")
    before = copy.deepcopy(model.state_dict())
    train(model, [{"input_ids": IDS}], loss_fn, max_steps=1, lr=0.1, progress=False)
    moved = {key for key, x in model.state_dict().items() if not torch.equal(x, before[key])}
    assert moved and all(key.endswith(".a") for key in moved)


def test_a_new_adapter_becomes_the_active_one():
    model = two()
    assert {layer.active for layer in lora_layers(model).values()} == {(), ("b",)}
    with pytest.raises(ValueError, match="has an adapter 'a' already, of a, b"):
        add_lora(model, 2, 4, ["q"], adapter_name="a")
    with pytest.raises(ValueError, match="no adapter 'c': the model has 'a', 'b'"):
        use_adapter(model, ["a", "c"])


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": -1.0}, {"b": 0.5}, {"a": 2.0, "b": 0.0}])
def test_a_weighted_sum_is_of_updates(weights):
    """In every layer Σ w s B A, by merged weights; ranks add up to 5 where both are."""
    model = two()
    W = {n: layer.weight.clone() for n, layer in lora_layers(model).items()}
    want = {}
    for n, layer in lora_layers(model).items():
        want[n] = sum(
            (weights.get(a, 0) * layer.settings[a].scaling * layer.lora_B[a] @ layer.lora_A[a]
             for a in layer.settings), torch.zeros(())
        )  # fmt: skip
    assert combine_adapters(model, "sum", weights) is model
    merge_lora(model, "sum")
    for n, layer in lora_layers(model).items():
        found = layer.merged_weight - W[n] if layer.merged else torch.zeros_like(W[n])
        close(found, want[n].expand_as(found))
    v = lora_layers(model)["blocks.0.attention.v"]
    assert v.settings["sum"].r == {("a", "b"): 5, ("b",): 3}[tuple(weights)]


def test_a_weighted_sum_by_hand():
    """(A, B) of (1, 1) and (2, 1), weights 1 and -1: 1 - 2 = -1. By factors: 0, or -2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.zeros_(model[0].weight)
    for name, A in (("a", 1.0), ("b", 2.0)):
        add_lora(model, 1, 1, ["0"], adapter_name=name, lora_bias=name == "b")
        nn.init.constant_(model[0].lora_A[name], A)
        nn.init.constant_(model[0].lora_B[name], 1.0)
    nn.init.constant_(model[0].lora_bias["b"], 10.0)
    combine_adapters(model, "sum", {"a": 1, "b": -1})
    assert model(torch.ones(1)).item() == -1 - 10
    with pytest.raises(ValueError, match="no weights"):
        combine_adapters(model, "none", {})


def test_the_size_of_the_output_with_the_rank():
    """rsLoRA: with factors of one size, s B A x keeps its size as r grows, and LoRA's falls by √r.
    Ranks 4 and 64: √16 = 4, up to the chance of 64 · 200 draws."""
    sizes = {}
    for rslora in (False, True):
        for r in (4, 64):
            model = nn.Sequential(nn.Linear(64, 200, bias=False))
            add_lora(model, r, 8, ["0"], use_rslora=rslora, generator=generator())
            nn.init.normal_(model[0].lora_B["default"], generator=generator(1))
            nn.init.zeros_(model[0].weight)
            x = torch.randn(100, 64, generator=generator(2))
            sizes[rslora, r] = model(x).std().item()
    assert sizes[True, 64] / sizes[True, 4] == pytest.approx(1, abs=0.1)
    assert sizes[False, 4] / sizes[False, 64] == pytest.approx(math.sqrt(16), rel=0.1)
