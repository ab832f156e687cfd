"""Linear layers found by name; wrappers that share their weights."""

import copy

import pytest
import torch
import transformers
from random_families import build
from random_models import llama
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_lib.bottleneck import AdaptedLinear
from course_lib.lora_layer import LoRALinear
from course_lib.wrapped_linear import (
    WrappedLinear,
    base_parameters,
    disabled,
    find_linear,
    freeze,
    last_parts,
    linear_layers,
    replace,
)

SIZES = {"vocab_size": 13, "layers": 2, "heads": 2, "width": 4, "inner": 9, "length": 16,
         "tied": False}  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["q"], ["blocks.0.attention.q", "blocks.1.attention.q"]),
        (["attention.v", "blocks.1.feed_forward.up"],
         ["blocks.0.attention.v", "blocks.1.attention.v", "blocks.1.feed_forward.up"]),
        (("head",), ["head"]),
        (r"blocks\.1\..*\.(k|down)", ["blocks.1.attention.k", "blocks.1.feed_forward.down"]),
        ("head", ["head"]),
    ],
)  # fmt: skip
def test_layers_by_name(targets, names):
    """A list has last parts of names; a string is a regular expression for whole ones, so "head"
    is a name and "q" would match none."""
    assert list(find_linear(llama(tie_embeddings=False), targets)) == names


def test_a_part_of_a_part_of_a_name_is_no_match():
    model = nn.ModuleDict({"up": nn.Linear(2, 2), "setup": nn.Linear(2, 2)})
    assert list(find_linear(model, ["up"])) == ["up"]


def test_all_linear_is_all_but_the_head():
    """Seven layers in each of two blocks; over there four, transposed ones."""
    model = llama(tie_embeddings=False)
    assert len(find_linear(model, "all-linear")) == 14 and "head" in linear_layers(model)
    theirs = build(transformers.GPT2LMHeadModel, SIZES, 0)
    found = find_linear(theirs, "all-linear")
    assert {n.rpartition(".")[2] for n in found} == {"c_attn", "c_proj", "c_fc"}
    assert len(found) == 8 and all(type(m) is Conv1D for m in found.values())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q", "query"], r"'query' matches no linear layer of Llama.*end in down, gate, head, k, "
                         r"out, q, up, v\."),
        ("q", r"'q' matches no linear.*whole names, such as 'blocks.0.attention.q'.*give a list"),
        (["embed"], r"'embed' matches no linear layer, but a layer of type Embedding"),
        (["attention"], r"'attention' matches no linear layer, but a layer of type Attention"),
        (["uery", "q"], "'uery'"),  # a part of a part is no match
        ([], "target_modules is empty"),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_told_with_what_would(targets, message):
    with pytest.raises(ValueError, match=message):
        find_linear(llama(tie_embeddings=False), targets)


def test_a_model_without_linear_layers_is_told():
    for targets in ("all-linear", ["q"]):
        with pytest.raises(ValueError, match="ReLU has no linear layer|no linear layer"):
            find_linear(nn.ReLU(), targets)


def test_a_linear_layer_with_another_forward_is_none():
    """A subclass that computes something else, e.g. on quantised weights, is not wrapped."""

    class Double(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.ModuleDict({"a": Double(2, 2), "b": nn.Linear(2, 2)})
    assert list(linear_layers(model)) == ["b"]


def test_last_parts_name_each_once():
    assert last_parts(["a.q", "b.q", "head"]) == "head, q"


@pytest.mark.parametrize("bias", [True, False])
def test_a_wrapper_is_the_layer(bias):
    """The same tensors under the same names, the same numbers, and the layer itself back."""
    layer = nn.Linear(3, 5, bias)
    wrapper, x = WrappedLinear(layer), torch.randn(2, 4, 3)
    assert torch.equal(wrapper.linear(x), layer(x))
    assert list(wrapper.state_dict()) == list(layer.state_dict())
    assert wrapper.weight is layer.weight and wrapper.bias is layer.bias
    assert (wrapper.in_features, wrapper.out_features) == (3, 5)
    assert wrapper.plain() is layer


def test_a_transposed_layer_is_read_so():
    """transformers' Conv1D(5, 3): 3 in, 5 out, the weight (3, 5)."""
    layer = Conv1D(5, 3)
    nn.init.normal_(layer.bias)
    wrapper, x = WrappedLinear(layer), torch.randn(2, 4, 3)
    assert (wrapper.in_features, wrapper.out_features) == (3, 5)
    torch.testing.assert_close(wrapper.linear(x), layer(x), atol=1e-5, rtol=0)


def test_a_copy_shares_nothing_and_gives_its_own_layer_back():
    model = nn.Sequential(nn.Linear(2, 2))
    replace(model, "0", WrappedLinear(model[0]))
    other = copy.deepcopy(model).double()
    with torch.no_grad():
        other[0].weight.zero_()
    assert model[0].weight.any() and model[0].weight.dtype == torch.float32
    plain = other[0].plain()
    assert not plain.weight.any() and plain.weight.dtype == torch.float64


def test_parts_of_wrappers_are_no_layers_of_the_model():
    """Of the adapter's own two linear layers none counts; wrappers do, of the class asked for."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    replace(model, "0", AdaptedLinear(model[0], 1))
    replace(model, "1", LoRALinear(model[1]))
    assert list(linear_layers(model)) == ["0", "1", "2"]
    assert list(linear_layers(model, LoRALinear)) == ["1", "2"]


def test_freezing_takes_gradients_away_too():
    layer = nn.Linear(2, 2)
    layer(torch.ones(2)).sum().backward()
    freeze(layer)
    assert all(not p.requires_grad and p.grad is None for p in layer.parameters())


def test_base_parameters_are_what_was_there():
    model = llama()
    before = dict(model.named_parameters())
    replace(model, "blocks.0.attention.q", AdaptedLinear(model.blocks[0].attention.q, 2))
    after = base_parameters(model)
    assert after.keys() == before.keys() and len(list(model.parameters())) == len(before) + 4
    assert all(after[name] is p for name, p in before.items())


def test_disabled_ends_also_when_something_fails():
    model = nn.Sequential(AdaptedLinear(nn.Linear(2, 2), 1), AdaptedLinear(nn.Linear(2, 2), 1))
    model[1].enabled = False
    with pytest.raises(KeyError), disabled(model):
        assert not model[0].enabled
        raise KeyError
    assert model[0].enabled and not model[1].enabled
