"""Bottleneck adapters: in series with frozen layers, the identity at the start."""

import copy
import math

import pytest
import torch
from peft_models import MODELS, base, generator
from torch import nn

from course_lib.bottleneck import PLACEMENTS, AdaptedLinear, add_adapters, bottleneck
from course_lib.lora import add_lora
from course_lib.ops import token_logprobs
from course_lib.training import train
from course_lib.wrapped_linear import base_parameters, disabled

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def loss_fn(model: nn.Module, batch: dict) -> torch.Tensor:
    return -token_logprobs(model(batch["input_ids"]).logits, batch["input_ids"]).mean()


def test_an_adapter_by_hand():
    """h = (1, 3), down (1, -1), b 4: 1 - 3 + 4 = 2; GELU(2) = 2 Φ(2) = 1.9545. up (10, 0),
    b' (0, 1): (1 + 19.545, 3 + 1)."""
    down, up = nn.Linear(2, 1), nn.Linear(1, 2)
    with torch.no_grad():
        down.weight.copy_(torch.tensor([[1.0, -1.0]]))
        down.bias.fill_(4.0)
        up.weight.copy_(torch.tensor([[10.0], [0.0]]))
        up.bias.copy_(torch.tensor([0.0, 1.0]))
    phi = 0.5 * (1 + math.erf(2 / math.sqrt(2)))
    found = bottleneck(torch.tensor([1.0, 3.0]), down, up).tolist()
    assert found == pytest.approx([1 + 20 * phi, 4], abs=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("placement", "each"), [("houlsby", 2), ("pfeiffer", 1)])
def test_the_start_is_the_base_and_training_moves_the_adapters_alone(name, placement, each):
    """Two blocks of one or two adapters, each of 2 C m + m + C parameters: m 3."""
    model = base(name)
    with torch.no_grad():
        start = model(IDS).logits
    assert add_adapters(model, 3, placement=placement, generator=generator()) is model
    C = model.get_input_embeddings().weight.shape[1]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 2 * each * (2 * C * 3 + 3 + C)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, start)
    before = {n: p.clone() for n, p in base_parameters(model).items()}
    history = train(model, [{"input_ids": IDS}] * 4, loss_fn, max_steps=4, lr=0.05, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(torch.equal(p, before[n]) for n, p in base_parameters(model).items())
    with torch.no_grad():
        assert (model(IDS).logits - start).abs().max() > 0.01
        with disabled(model):
            assert torch.equal(model(IDS).logits, start)


def test_it_stands_between_the_sublayer_and_the_residual_stream():
    """With an up that gives 1 everywhere, the sublayer's output is 1 more, and so is the stream
    after the block: x + f(x) + 1. (BLOOM adds the stream inside of its sublayers.)"""
    model = base("Llama")
    block, x = model.blocks[1], torch.randn(1, 3, 24, generator=generator())
    with torch.no_grad():
        before = block(x)
        add_adapters(model, 2, [r"blocks.1.feed_forward.down"])
        block.feed_forward.down.adapter_up.bias.fill_(1.0)
        torch.testing.assert_close(block(x), before + 1, atol=1e-5, rtol=0)


def test_layers_by_name_and_copies():
    """Keys of the base stay; a copy has adapters of its own; the generator alone decides."""
    model = add_adapters(base("Llama"), 2, ["down"], generator=generator(1))
    assert set(base("Llama").state_dict()) <= set(model.state_dict())
    other = add_adapters(base("Llama"), 2, ["down"], generator=generator(1))
    assert all(torch.equal(x, other.state_dict()[k]) for k, x in model.state_dict().items())
    twin = copy.deepcopy(model)
    nn.init.ones_(twin.blocks[0].feed_forward.down.adapter_up.weight)
    assert not model.blocks[0].feed_forward.down.adapter_up.weight.any()
    assert sum(isinstance(m, AdaptedLinear) for m in model.modules()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size=0 must be a whole number of at least 1"),
        ({"size": 1.0}, "size=1.0"),
        ({"placement": "after"}, "placement must be one of houlsby, pfeiffer, got 'after'"),
        ({"target_modules": ["dense"]}, "'dense' matches no linear layer"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    model = base("Llama")
    with pytest.raises(ValueError, match=message):
        add_adapters(model, **{"size": 2} | arguments)
    assert all(p.requires_grad for p in model.parameters())


def test_an_unknown_model_says_what_it_has():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Name them in target_modules; its linear layers end in 0"):
        add_adapters(model, 1)
    assert add_adapters(model, 1, ["1"])(torch.ones(2)).shape == (2,)


def test_one_adapter_a_layer():
    model = add_adapters(base("Llama"), 2)
    with pytest.raises(ValueError, match="has LoRA or an adapter already"):
        add_adapters(model, 2)
    with pytest.raises(ValueError, match="'down' matches no linear layer"):
        add_lora(model, 2, 4, ["down"])
    with pytest.raises(ValueError, match="has LoRA or an adapter already"):
        add_adapters(add_lora(base("Llama"), 2, 4, ["down"]), 2)
    assert set(PLACEMENTS["pfeiffer"]) < set(PLACEMENTS["houlsby"])
