"""Prompt tuning: where the vectors stand, padding, generation, what is trained."""

import copy

import pytest
import torch
import transformers
from peft_models import MODELS, SIZES, base, generator
from random_families import build
from random_models import llama
from torch import nn

from course_lib.generation import generate, generate_reference
from course_lib.lora import add_lora
from course_lib.models import BERT, BERTConfig, mask_inputs
from course_lib.ops import token_logprobs
from course_lib.soft_prompts import add_soft_prompt
from course_lib.training import train
from course_lib.wrapped_linear import disabled

IDS = torch.tensor([[0, 0, 4, 1, 5], [9, 2, 6, 5, 3], [0, 8, 9, 7, 9]])
LEFT = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [0, 1, 1, 1, 1]])
models = pytest.mark.parametrize("name", MODELS)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def loss_fn(model: nn.Module, batch: dict) -> torch.Tensor:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    logits = model(batch["input_ids"], **mask_inputs(model, batch["attention_mask"])).logits
    return -token_logprobs(logits, labels).mean()


# --- where they stand ---------------------------------------------------------------------------


def test_positions_behind_two_vectors():
    """P 2, [pad pad a b]: read as [v v pad pad a b], so a is at position 2 and b at 3; columns
    would say 4 and 5. b is what row 4 of the P + T says, that of a, which is row 2 of the T."""

    class Spy(nn.Module):
        """Takes the place of the model and shows what it is given."""

        def __init__(self, model):
            super().__init__()
            self.inner, self.config = model, model.config

        def get_input_embeddings(self):
            return self.inner.embed

        def forward(self, position_ids=None, **inputs):
            self.seen = inputs | {"position_ids": position_ids}
            return self.inner(position_ids=position_ids, **inputs)

    model = add_soft_prompt(llama(), 2, generator=generator())
    spy = model.model = Spy(model.model)
    ids, mask = torch.tensor([[0, 0, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
    logits = model(ids, mask).logits
    assert spy.seen["attention_mask"].tolist() == [[1, 1, 0, 0, 1, 1]]
    assert spy.seen["position_ids"][0, [0, 1, 4, 5]].tolist() == [0, 1, 2, 3]
    embeds = spy.seen["inputs_embeds"]
    assert torch.equal(embeds[0, :2], model.prompt) and embeds.shape == (1, 6, 24)
    assert torch.equal(embeds[0, 4:], spy.inner.embed(torch.tensor([5, 6])))
    whole = spy.inner(inputs_embeds=embeds, attention_mask=spy.seen["attention_mask"]).logits
    close(logits[:, 2], whole[:, 4])
    assert logits.shape == (1, 4, 13)
    moved = model(ids, mask, position_ids=torch.tensor([[0, 0, 7, 8]])).logits
    assert spy.seen["position_ids"].tolist() == [[0, 1, 2, 2, 9, 10]]
    assert (moved - logits)[0, 2:].abs().max() > 0.001


@models
def test_padding_changes_nothing(name):
    """On the left, and on the right; with and without positions that are given."""
    model = add_soft_prompt(base(name), 3, generator=generator()).eval()
    with torch.no_grad():
        left = model(IDS, LEFT).logits
        close(model(IDS, **mask_inputs(model, LEFT)).logits[LEFT == 1], left[LEFT == 1])
        for row, mask in enumerate(LEFT.bool()):
            alone = model(IDS[row : row + 1, mask]).logits[0]
            close(left[row][mask], alone)
            right = torch.cat([IDS[row, mask], IDS[row, ~mask]])[None]
            close(model(right, mask.sort(descending=True).values[None].long()).logits[
                0, : int(mask.sum())], alone)  # fmt: skip


@models
def test_vectors_of_tokens_are_those_tokens(name):
    """Started from ids, it is the model behind these tokens; switched off, the model alone."""
    plain = base(name)
    model = add_soft_prompt(copy.deepcopy(plain), 3, init=[7, 8, 9])
    longer = torch.cat([torch.tensor([[7, 8, 9]]).expand(3, -1), IDS], dim=1)
    with torch.no_grad():
        close(model(IDS).logits, plain(longer).logits[:, 3:])
        close(model(IDS, logits_to_keep=1).logits, plain(longer).logits[:, -1:])
        with disabled(model):
            close(model(IDS).logits, plain(IDS).logits)


def test_packed_rows_are_refused():
    """[a b c | d e]: d would not see the vectors."""
    model = add_soft_prompt(llama(), 2)
    model(IDS, position_ids=torch.tensor([[0, 1, 2, 3, 4]]))
    with pytest.raises(ValueError, match="several texts.*no packing"):
        model(IDS, position_ids=torch.tensor([[0, 1, 2, 0, 1]]))


# --- generation ---------------------------------------------------------------------------------


@models
def test_generation_with_a_cache_is_that_without(name):
    """Padded on the left, and not; rows that end early are dropped."""
    model = add_soft_prompt(base(name), 3, generator=generator(2))
    for mask in (LEFT, None):
        for end in (None, 5, 9):
            settings = {"max_new_tokens": 7, "temperature": 0, "eos_token_id": end}
            found = generate(model, IDS, mask, **settings)
            assert torch.equal(found, generate_reference(model, IDS, mask, **settings))
    tokens = add_soft_prompt(base(name), 3, init=[7, 8, 9])
    longer = torch.cat([torch.tensor([[7, 8, 9]]).expand(3, -1), IDS], dim=1)
    want = generate(base(name), longer, max_new_tokens=7, temperature=0)
    assert torch.equal(generate(tokens, IDS, max_new_tokens=7, temperature=0), want[:, 3:])


@pytest.mark.parametrize("name", MODELS[1:])
def test_transformers_own_generate_writes_the_same(name):
    model = add_soft_prompt(base(name), 3, generator=generator(2))
    for mask in (LEFT, torch.ones_like(LEFT)):
        theirs = model.generate(IDS, mask, max_new_tokens=7, do_sample=False, pad_token_id=0,
                                eos_token_id=None)  # fmt: skip
        ours = generate(model, IDS, mask, max_new_tokens=7, temperature=0)
        assert torch.equal(ours, theirs)


# --- what is trained ----------------------------------------------------------------------------


@models
def test_only_the_vectors_move(name):
    model = add_soft_prompt(base(name), 3, generator=generator())
    before, start = {n: p.clone() for n, p in model.named_parameters()}, model.prompt.clone()
    batch = {"input_ids": IDS, "attention_mask": LEFT}
    history = train(model, [batch] * 5, loss_fn, max_steps=5, lr=0.1, progress=False)
    assert history[-1]["loss"] < history[0]["loss"] and not torch.equal(model.prompt, start)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"prompt"} == {n for n, p in model.named_parameters() if p.requires_grad}


def test_the_first_vectors():
    """From ids, repeated or cut; rows of the embeddings that are drawn; noise of the width asked
    for: 24 · 12 draws of deviation .5, give or take .5/√576 = .02."""
    embed = llama().embed.weight
    for n, ids, want in ((5, [4, 7], [4, 7, 4, 7, 4]), (2, [4, 7, 9], [4, 7])):
        assert torch.equal(add_soft_prompt(llama(), n, init=ids).prompt, embed[want])
    found = [add_soft_prompt(llama(), 12, generator=generator(i // 2)).prompt for i in range(3)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    for row in found[0]:
        assert (embed == row).all(1).any()
    noise = add_soft_prompt(llama(), 12, init="noise", std=0.5, generator=generator()).prompt
    assert noise.std().item() == pytest.approx(0.5, abs=0.1)
    start = add_soft_prompt(llama().bfloat16(), 2, init=[1, 2])
    assert start.prompt.dtype == torch.float32 and start(IDS).logits.dtype == torch.bfloat16


def test_a_shorter_context_is_told_in_time():
    """Of 24 tokens, 3 are the vectors': 21 are left, and 5 + 16 fit."""
    for name in ("Llama", "GPT2LMHeadModel"):
        model = add_soft_prompt(base(name), 3)
        assert generate(model, IDS, max_new_tokens=16, temperature=0).shape == (3, 21)
        with pytest.raises(ValueError, match="1 too many for the context of 21"):
            generate(model, IDS, max_new_tokens=17, temperature=0)
        with pytest.raises(ValueError, match="n_tokens=24 leaves no room.* context of 24"):
            add_soft_prompt(base(name), 24)
        add_soft_prompt(base(name), 23)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_tokens": 0}, "n_tokens=0 must be a whole number of at least 1"),
        ({"init": "Write the plural"}, "got 'Write the plural': encode a text first"),
        ({"init": []}, "0 token ids"),
        ({"init": [3, 13]}, r"2 token ids \[3, 13\]; expected at least one, in 0..12"),
        ({"init": [-1]}, "in 0..12"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    model = llama()
    with pytest.raises(ValueError, match=message):
        add_soft_prompt(model, **{"n_tokens": 2} | arguments)
    assert all(p.requires_grad for p in model.parameters())


def test_only_causal_language_models_have_one():
    config = BERTConfig(vocab_size=13, n_layer=1, n_head=2, n_embd=8, n_inner=8,
                        block_size=16, n_token_type=2)  # fmt: skip
    others = [
        BERT(config), llama(n_label=2), nn.Linear(2, 2), add_soft_prompt(llama(), 2),
        build(transformers.T5ForConditionalGeneration, SIZES, 0),
        transformers.GPT2Model(base("GPT2LMHeadModel").config),
    ]  # fmt: skip
    for model in others:
        with pytest.raises(ValueError, match=f"causal language model, got {type(model).__name__}"):
            add_soft_prompt(model, 2)


def test_a_copy_has_vectors_and_a_model_of_its_own():
    model = add_soft_prompt(add_lora(llama(), 2, 4, ["q"]), 2)
    other = copy.deepcopy(model)
    nn.init.zeros_(other.prompt)
    nn.init.zeros_(other.model.embed.weight)
    assert model.prompt.any() and model.model.embed.weight.any()
    again = add_soft_prompt(add_lora(llama(1), 2, 4, ["q"]), 2)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(IDS).logits, model(IDS).logits)
