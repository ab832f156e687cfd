"""One model, an adapter for each row of a batch."""

import copy

import pytest
import torch
from peft_models import MODELS, base, generator
from torch import nn

from course_lib.adapter_rows import AdapterRows, adapter_rows
from course_lib.generation import generate, generate_reference
from course_lib.lora import add_lora, lora_layers, merge_lora, use_adapter
from course_lib.models import mask_inputs
from course_lib.wrapped_linear import disabled

IDS = torch.tensor([[0, 0, 4, 1, 5], [9, 2, 6, 5, 3], [0, 8, 9, 7, 9], [3, 1, 4, 1, 5]])
LEFT = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [0, 1, 1, 1, 1], [1] * 5])
NAMES = ["b", None, "a", "b"]
models = pytest.mark.parametrize("name", MODELS)


def served(name: str) -> nn.Module:
    """A base with adapters a (q and more) and b (all), which change the logits by much."""
    model, g = base(name), generator(3)
    add_lora(model, 2, 4, "all-linear", adapter_name="a", generator=g)
    add_lora(model, 3, 4, r".*(q|q_proj|attn|query_key_value)", adapter_name="b", generator=g)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for B in layer.lora_B.values():
                B.normal_(generator=g)
    return model


@models
def test_each_row_is_as_if_it_were_alone(name):
    """By its adapter, or by none; and afterwards the active adapter is back."""
    model = served(name)
    with torch.no_grad():
        before = model(IDS, **mask_inputs(model, LEFT)).logits
        with adapter_rows(model, NAMES):
            mixed = model(IDS, **mask_inputs(model, LEFT)).logits
        assert torch.equal(model(IDS, **mask_inputs(model, LEFT)).logits, before)
        differ = 0
        for row, own in enumerate(NAMES):
            use_adapter(model, own)
            kept, some = LEFT[row].bool(), slice(row, row + 1)
            alone = model(IDS[some], **mask_inputs(model, LEFT[some])).logits
            torch.testing.assert_close(mixed[row][kept], alone[0][kept], atol=1e-5, rtol=0)
            differ += (alone - before[some]).abs().max() > 0.1
    assert differ >= 2


@models
@pytest.mark.parametrize("end", [None, 5])
def test_generation_drops_ended_rows_with_their_adapters(name, end):
    """Rows end at different steps; each is what its adapter writes alone, and what the reference
    without a cache writes."""
    model = served(name)
    rows = AdapterRows(model, NAMES)
    settings = {"max_new_tokens": 8, "temperature": 0, "eos_token_id": end, "pad_token_id": 0}
    mixed = generate(rows, IDS, LEFT, **settings)
    assert torch.equal(mixed, generate_reference(rows, IDS, LEFT, **settings))
    for row, own in enumerate(NAMES):
        use_adapter(model, own)
        alone = generate(model, IDS[row : row + 1], LEFT[row : row + 1], **settings)[0]
        assert torch.equal(mixed[row, : len(alone)], alone) and not mixed[row, len(alone) :].any()


def test_rows_do_end_at_different_steps():
    """Or the test above would drop none: with end tokens that a first run shows."""
    model = served("Llama")
    rows = AdapterRows(model, NAMES)
    free = generate(rows, IDS, LEFT, max_new_tokens=8, temperature=0)[:, 5:]
    for end in free.unique().tolist():
        ends = [row.tolist().index(end) if end in row else 8 for row in free]
        mixed = generate(rows, IDS, LEFT, max_new_tokens=8, temperature=0, eos_token_id=end)
        for row, at in enumerate(ends):
            assert mixed[row, 5 : 5 + at].tolist() == free[row, :at].tolist()
        if min(ends) < max(ends):
            break
    else:
        raise AssertionError("no end token tells the rows apart")


def test_transformers_own_generate_serves_them_too():
    model = served("LlamaForCausalLM")
    with adapter_rows(model, NAMES):
        theirs = model.generate(IDS, attention_mask=LEFT, max_new_tokens=6, do_sample=False,
                                pad_token_id=0, eos_token_id=None)  # fmt: skip
    ours = generate(AdapterRows(model, NAMES), IDS, LEFT, max_new_tokens=6, temperature=0)
    assert torch.equal(ours, theirs)


def test_each_adapter_learns_from_its_own_rows():
    """The gradient of a's B is that of a alone on its rows; None trains nothing."""
    model = served("Llama")
    use_adapter(model, ["a", "b"])
    with adapter_rows(model, NAMES):
        model(IDS).logits[2].square().sum().backward()
    other = copy.deepcopy(model)
    use_adapter(other, "a")
    other.zero_grad()
    other(IDS[2:3]).logits.square().sum().backward()
    for name, layer in lora_layers(model).items():
        mine = lora_layers(other)[name].lora_B["a"].grad
        torch.testing.assert_close(layer.lora_B["a"].grad, mine, atol=1e-3, rtol=1e-4)
        if "b" in layer.lora_B:
            assert not layer.lora_B["b"].grad.any()


def test_disabled_is_the_base_for_every_row():
    model = served("Llama")
    with torch.no_grad(), disabled(model):
        plain = model(IDS).logits
        with adapter_rows(model, NAMES):
            assert torch.equal(model(IDS).logits, plain)


def test_what_cannot_be_served_is_told():
    model = served("Llama")
    for make in (adapter_rows, AdapterRows):
        with pytest.raises(ValueError, match="no adapter 'c'"):
            made = make(model, ["a", "c"])
            with made:
                pass
    with adapter_rows(model, ["a", None]):
        with pytest.raises(ValueError, match="told 2 rows, and a batch of 4 came"):
            model(IDS)
        with adapter_rows(model, NAMES):
            model(IDS)
        model(IDS[:2])
    merge_lora(model)
    with pytest.raises(ValueError, match="merged into the weights"), adapter_rows(model, NAMES):
        pass
