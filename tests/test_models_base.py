"""What all families share: positions that follow the mask, embeddings as input, the output head."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from random_families import SEEDS, SIZES, build
from random_models import batches, chunks, compact, llama, positions
from torch import nn

from course_lib.models import (
    BART,
    BERT,
    GPT2,
    T5,
    BERTConfig,
    GPT2Config,
    from_transformers,
    mask_inputs,
    positions_from_mask,
)
from course_lib.ops import IGNORE_INDEX
from course_lib.pretraining import causal_lm_loss, masked_lm_loss, seq2seq_loss
from course_lib.sft import sft_loss

SMALL = {"vocab_size": 11, "layers": 2, "heads": 3, "width": 4, "inner": 9, "length": 16,
         "tied": True}  # fmt: skip
DECODERS = ["GPT2LMHeadModel", "BloomForCausalLM", "LlamaForCausalLM"]
RIGHT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
LEFT = RIGHT.flip(1)
IDS = torch.tensor([[3, 1, 4, 0, 0], [1, 5, 9, 2, 6], [5, 3, 0, 0, 0]])
"""Texts of 3, 5 and 2 tokens, padded on the right."""


def small(name: str, seed: int = 0, **more):
    """A random model over there: (name of its class) -> model."""
    return build(getattr(transformers, name), SMALL, seed, **more)


def to_the_left(x: torch.Tensor) -> torch.Tensor:
    """A batch (3, 5) of the lengths above with its padding on the left."""
    order = RIGHT.argsort(dim=1, stable=True)
    return x.gather(1, order)


# --- positions ----------------------------------------------------------------------------------


def test_positions_count_the_kept_tokens_before():
    """Left, right, a hole: the token after the hole goes on where the last one before it was."""
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]])
    assert positions_from_mask(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2]]
    assert positions_from_mask(mask.bool()).tolist() == positions_from_mask(mask).tolist()


def losses(model, loss, labels_right, **right):
    """The loss of a batch padded on the right, and of the same padded on the left."""
    left = {name: to_the_left(x) for name, x in right.items()}
    with torch.no_grad():
        return (
            loss(model, {**right, "labels": labels_right}).item(),
            loss(model, {**left, "labels": to_the_left(labels_right)}).item(),
        )


def losses_of(model) -> tuple[float, float]:
    """Of a model of any family, with the loss that belongs to it."""
    labels = IDS.masked_fill(RIGHT == 0, IGNORE_INDEX)
    batch = {"input_ids": IDS, "attention_mask": RIGHT}
    if isinstance(model, (T5, BART)):
        decoder = {"decoder_input_ids": (IDS + 1) * RIGHT, "decoder_attention_mask": RIGHT}
        return losses(model, seq2seq_loss, labels, **batch, **decoder)
    if isinstance(model, BERT):  # and RoBERTa
        return losses(model, masked_lm_loss, labels, **batch)
    return losses(model, causal_lm_loss, labels, **batch)


@pytest.mark.parametrize(
    "name",
    [*DECODERS, "BertForMaskedLM", "RobertaForMaskedLM", "T5ForConditionalGeneration",
     "BartForConditionalGeneration"],
)  # fmt: skip
def test_both_sides_of_padding_give_one_loss(name):
    """The same texts, the same loss. Before, positions were columns where they were not given, and
    GPT-2's losses were 2.83 and 2.72. The padding's ids are 0, which is no padding token."""
    for seed in range(5):
        right, left = losses_of(from_transformers(small(name, seed)))
        assert left == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("loss", [causal_lm_loss, sft_loss])
@pytest.mark.parametrize("name", DECODERS)
def test_both_sides_of_padding_give_one_loss_to_transformers_models_too(name, loss):
    """The first token of each row is its prompt, so it has no label."""
    labels = IDS.masked_fill(RIGHT == 0, IGNORE_INDEX)
    labels[:, 0] = IGNORE_INDEX
    for seed in range(5):
        batch = {"input_ids": IDS, "attention_mask": RIGHT}
        right, left = losses(small(name, seed), loss, labels, **batch)
        assert left == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "GPT2ForSequenceClassification",
                                  "RobertaForSequenceClassification",
                                  "LlamaForSequenceClassification"])  # fmt: skip
def test_both_sides_of_padding_give_one_class(name):
    """An encoder reads the first kept token, a decoder the last one, wherever they stand."""
    model = from_transformers(small(name, num_labels=3, pad_token_id=10))
    with torch.no_grad():
        right, left = model(IDS, RIGHT).logits, model(to_the_left(IDS), LEFT).logits
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
    assert (right[0] - right[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_models_are_told_their_positions(name):
    """With ``mask_inputs`` padding changes nothing over there either; without, GPT-2 differs."""
    hf_model = small(name)

    def logits(ids, mask, told: bool):
        more = mask_inputs(hf_model, mask) if told else {"attention_mask": mask}
        with torch.no_grad():
            return hf_model(ids, **more).logits[mask.bool()]

    right = logits(IDS, RIGHT, told=True)
    torch.testing.assert_close(logits(to_the_left(IDS), LEFT, told=True), right, atol=1e-5, rtol=0)
    if name == "GPT2LMHeadModel":
        assert (logits(to_the_left(IDS), LEFT, told=False) - right).abs().max() > 0.1


def test_mask_inputs_say_what_a_model_takes():
    class NoPositions(nn.Module):
        def forward(self, input_ids, attention_mask=None):
            raise NotImplementedError

    class Anything(nn.Module):
        def forward(self, *args, **kwargs):
            raise NotImplementedError

    given_ = torch.tensor([[0, 1, 0, 1, 2]] * 3)
    assert mask_inputs(NoPositions(), LEFT).keys() == {"attention_mask"}
    assert mask_inputs(llama(), None) == {"attention_mask": None}
    assert torch.equal(mask_inputs(Anything(), LEFT)["position_ids"], positions(LEFT))
    assert torch.equal(mask_inputs(llama(), LEFT)["position_ids"], positions(LEFT))
    assert torch.equal(mask_inputs(llama(), None, given_)["position_ids"], given_)


@pytest.mark.parametrize("name", DECODERS)
def test_positions_follow_the_mask_through_the_cache(name):
    """Prompts padded on the left, then two tokens one by one: the logits of each row alone."""
    model = from_transformers(small(name))
    ids = torch.cat([to_the_left(IDS), torch.tensor([[7, 8], [2, 4], [10, 1]])], dim=1)
    mask = torch.cat([LEFT, torch.ones(3, 2, dtype=torch.long)], dim=1)
    cache, outs = None, []
    with torch.no_grad():
        for start, end in chunks(7, {5, 6}):
            out = model(ids[:, start:end], mask[:, :end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            outs.append(out.logits)
        for row, keep, logits in zip(ids, mask.bool(), torch.cat(outs, 1), strict=True):
            torch.testing.assert_close(
                logits[keep], model(row[keep][None]).logits[0], atol=1e-5, rtol=0
            )


def test_kept_tokens_not_columns_count_against_the_context():
    """20 columns of which 8 are padding fit in a context of 16; 17 kept ones do not, nor does a
    17th one by one."""
    model = from_transformers(small("GPT2LMHeadModel"))
    ids, mask = torch.ones(1, 20, dtype=torch.long), torch.ones(1, 20, dtype=torch.long)
    mask[:, :8] = 0
    with torch.no_grad():
        assert model(ids, attention_mask=mask).logits.shape == (1, 20, 11)
        cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
        for n in range(1, 5):  # tokens 13 to 16
            model(ids[:, :1], attention_mask=torch.cat([mask, mask.new_ones(1, n)], 1),
                  past_key_values=cache)  # fmt: skip
        with pytest.raises(ValueError, match="position 16, 1 beyond the context of 16"):
            model(ids[:, :1], attention_mask=torch.cat([mask, mask.new_ones(1, 5)], 1),
                  past_key_values=cache)  # fmt: skip
    mask[:, 3:] = 1
    with pytest.raises(ValueError, match="position 16, 1 beyond the context of 16"):
        model(ids, attention_mask=mask)


# --- embeddings as input ------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_embedded_tokens_are_the_tokens(name):
    """Bit by bit: padded, with a cache, in pieces of which one is embedded and one is not."""

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(st.data(), st.fixed_dictionaries(SIZES), SEEDS, st.sets(st.integers(1, 11), max_size=3))
    def run(data, sizes, seed, cuts):
        model = from_transformers(build(getattr(transformers, name), sizes, seed))
        ids, mask = data.draw(batches(sizes["vocab_size"]))
        embed, cache, other = model.get_input_embeddings(), None, None
        with torch.no_grad():
            whole = model(ids, mask).logits
            assert torch.equal(model(inputs_embeds=embed(ids), attention_mask=mask).logits, whole)
            for n, (start, end) in enumerate(chunks(ids.shape[1], cuts)):
                piece, seen = ids[:, start:end], mask[:, :end]
                form = {"inputs_embeds": embed(piece)} if n % 2 == 0 else {"input_ids": piece}
                a = model(**form, attention_mask=seen, past_key_values=cache, use_cache=True)
                b = model(piece, seen, past_key_values=other, use_cache=True)
                cache, other = a.past_key_values, b.past_key_values
                assert torch.equal(a.logits, b.logits)

    run()


@pytest.mark.parametrize("name", DECODERS)
def test_vectors_that_are_no_tokens_are_read_as_in_transformers(name):
    """Soft prompts: three vectors of no token before the text. BLOOM norms them as it norms its
    embeddings, on both sides."""
    for seed in range(5):
        hf_model = small(name, seed)
        model, g = from_transformers(hf_model), torch.Generator().manual_seed(seed)
        soft = torch.randn(3, 3, model.config.n_embd, generator=g)
        x = torch.cat([soft, model.embed(IDS)], dim=1)
        mask = torch.cat([torch.ones(3, 3, dtype=torch.long), RIGHT], dim=1)
        with torch.no_grad():
            ours = model(inputs_embeds=x, attention_mask=mask).logits
            theirs = hf_model(inputs_embeds=x, **mask_inputs(hf_model, mask)).logits
        kept = mask.bool()
        torch.testing.assert_close(ours[kept], theirs[kept], atol=1e-5, rtol=0)


def test_gradients_reach_a_soft_prompt():
    model, soft = llama(), torch.zeros(1, 2, 24, requires_grad=True)
    x = torch.cat([soft, model.embed(IDS[1:2])], dim=1)
    model(inputs_embeds=x).logits[:, -1].logsumexp(-1).sum().backward()
    assert (soft.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "give either input_ids .* or inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(3, 5, 24)}, "give only one of input_ids"),
        ({"inputs_embeds": torch.zeros(3, 5, 23)}, r"must be \(B, T, 24\).*got \(3, 5, 23\)"),
        ({"inputs_embeds": torch.zeros(3, 24)}, r"must be \(B, T, 24\).*got \(3, 24\)"),
        ({"inputs_embeds": torch.zeros(3, 0, 24)}, "at least one token"),
        ({"inputs_embeds": torch.zeros(3, 5, 24), "attention_mask": torch.ones(3, 4)},
         r"expected \(3, 5\)"),
        ({"inputs_embeds": torch.zeros(1, 17, 24)}, "position 16, 1 beyond the context of 16"),
    ],
)  # fmt: skip
def test_input_in_no_form_or_in_two_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        llama()(**inputs)


# --- the output head ----------------------------------------------------------------------------


class Twice(nn.Module):
    """A layer in the place of another, without a weight of its own: twice what that one says."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


def test_a_head_in_the_place_of_the_models_is_called():
    """Llama's logits double; of BERT's, the part that is not the bias; a tied model uses a head
    that was given to it instead of its embeddings."""
    model = llama(tie_embeddings=False)
    bert = BERT(BERTConfig(11, 1, 2, 8, 8, 8, tie_embeddings=False))
    nn.init.normal_(bert.head_bias, generator=torch.Generator().manual_seed(0))
    tied = GPT2(GPT2Config(11, 1, 2, 8, 8))
    with torch.no_grad():
        before, bert_before = model(IDS).logits, bert(IDS).logits
        tied_before = tied(IDS).logits
        model.head, bert.head = Twice(model.head), Twice(bert.head)
        tied.head = Twice(nn.Linear(8, 11, bias=False))
        tied.head.inner.weight.copy_(tied.embed.weight)
        torch.testing.assert_close(model(IDS).logits, 2 * before)
        torch.testing.assert_close(bert(IDS).logits, 2 * bert_before - bert.head_bias)
        torch.testing.assert_close(tied(IDS).logits, 2 * tied_before)


def test_hidden_states_are_those_of_all_tokens_however_few_are_scored():
    model = llama()
    with torch.no_grad():
        whole, last = model(IDS), model(IDS, logits_to_keep=1)
    assert last.logits.shape == (3, 1, 13)
    assert torch.equal(last.last_hidden_state, whole.last_hidden_state)
    assert whole.last_hidden_state.shape == (3, 5, 24)
    torch.testing.assert_close(model.score(whole.last_hidden_state), whole.logits)


def test_compact_moves_kept_tokens_to_the_front():
    """The helper of the parity tests: 7 9 kept of 6 7 8 9."""
    mask, ids = torch.tensor([[0, 1, 0, 1]]), torch.tensor([[6, 7, 8, 9]])
    right, moved = compact(mask, ids)
    assert right.tolist() == [[1, 1, 0, 0]] and moved.tolist() == [[7, 9, 6, 8]]
