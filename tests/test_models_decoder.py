"""The Llama decoder: logits equal transformers', with padding and cache; bad input is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import batches, chunks, configs, llama, llamas, positions
from transformers import DynamicCache

from course_lib.models import Llama, LlamaConfig, from_transformers, to_transformers

TOLERANCE = 1e-5  # on logits whose standard deviation is about 1
seeds = st.integers(0, 2**16)


def reference(model: Llama):
    """transformers' model with its plain attention, which shares no kernel with ours."""
    hf_model = to_transformers(model)
    hf_model.set_attn_implementation("eager")
    return hf_model.eval()


def assert_same_where_kept(ours, theirs, mask):
    difference = (ours - theirs).abs()[mask.bool()].max().item()
    assert difference <= TOLERANCE, f"largest difference {difference}"


def read_in_chunks(model, input_ids, mask, position_ids, cuts):
    """Logits (B, T, V) of all tokens, read piece by piece through one cache."""
    cache, logits = None, []
    for start, end in chunks(input_ids.shape[1], cuts):
        out = model(
            input_ids[:, start:end],
            attention_mask=None if mask is None else mask[:, :end],
            position_ids=None if position_ids is None else position_ids[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_logits_equal_transformers(data):
    """Random shapes, padding on either side, positions counted by the model or by the caller."""
    model = data.draw(llamas())
    input_ids, mask = data.draw(batches(model.config.vocab_size))
    position_ids = positions(mask) if data.draw(st.booleans()) else None
    with torch.no_grad():
        ours = model(input_ids, attention_mask=mask, position_ids=position_ids).logits
        theirs = reference(model)(
            input_ids, attention_mask=mask, position_ids=positions(mask)
        ).logits
    assert_same_where_kept(ours, theirs, mask)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_logits_equal_transformers_through_both_caches(data):
    """Both read the same pieces, ours into a KVCache, theirs into a DynamicCache."""
    model = data.draw(llamas())
    input_ids, mask = data.draw(batches(model.config.vocab_size))
    cuts = data.draw(st.sets(st.integers(1, 11)))
    hf_model, cache, theirs = reference(model), DynamicCache(), []
    position_ids = positions(mask)
    with torch.no_grad():
        ours = read_in_chunks(model, input_ids, mask, position_ids, cuts)
        for start, end in chunks(input_ids.shape[1], cuts):
            out = hf_model(
                input_ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache,
                position_ids=position_ids[:, start:end], use_cache=True,
            )  # fmt: skip
            theirs.append(out.logits)
    assert_same_where_kept(ours, torch.cat(theirs, dim=1), mask)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_reading_in_chunks_equals_one_pass(data):
    """However the text is cut, with and without a mask, positions and gradients."""
    model = data.draw(llamas())
    input_ids, mask = data.draw(batches(model.config.vocab_size))
    cuts = data.draw(st.sets(st.integers(1, 11)))
    position_ids = positions(mask) if data.draw(st.booleans()) else None
    if data.draw(st.booleans()):
        mask = None
    with torch.set_grad_enabled(data.draw(st.booleans())):
        # Without mask and cache, positions that start anew would mean several documents a row.
        restarts = mask is None and position_ids is not None
        whole = model(input_ids, attention_mask=mask, position_ids=position_ids,
                      use_cache=restarts).logits  # fmt: skip
        pieces = read_in_chunks(model, input_ids, mask, position_ids, cuts)
    assert_same_where_kept(pieces, whole, torch.ones_like(input_ids) if mask is None else mask)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_gradients_equal_transformers(data):
    """Every parameter's, of the sum of logsumexp(logits) over the kept positions.

    Their gradients are put in the place of their weights, so that ``from_transformers`` names them.
    """
    model = data.draw(llamas())
    input_ids, mask = data.draw(batches(model.config.vocab_size))
    hf_model = reference(model)
    for m in (model, hf_model):
        logits = m(input_ids, attention_mask=mask, position_ids=positions(mask)).logits
        logits[mask.bool()].logsumexp(-1).sum().backward()
    for p in hf_model.parameters():
        p.data = p.grad
    theirs = dict(from_transformers(hf_model).named_parameters())
    for name, p in model.named_parameters():
        scale = max(1.0, p.grad.abs().max().item())
        assert (p.grad - theirs[name]).abs().max().item() <= TOLERANCE * scale, name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_padding_changes_nothing(data):
    """Each row of a padded batch gets the logits it gets alone, whatever the padding's ids."""
    model = data.draw(llamas())
    input_ids, mask = data.draw(batches(model.config.vocab_size))
    with torch.no_grad():
        together = model(input_ids, attention_mask=mask, position_ids=positions(mask)).logits
        assert together.isfinite().all()
        for row, keep, logits in zip(input_ids, mask.bool(), together, strict=True):
            alone = model(row[keep][None]).logits[0]
            torch.testing.assert_close(logits[keep], alone, atol=TOLERANCE, rtol=0)


def test_without_positions_and_mask_they_are_counted_from_the_first_column():
    """With a cache the count goes on: 3, 4 given and counted after 3 cached are the same."""
    model = llama()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        first = model(ids[:, :3], use_cache=True).past_key_values
        counted = model(ids[:, 3:], past_key_values=first).logits
        first = model(ids[:, :3], use_cache=True).past_key_values
        given_ = model(ids[:, 3:], past_key_values=first, position_ids=torch.tensor([[3, 4]]))
        first = model(ids[:, :3], use_cache=True).past_key_values
        moved = model(ids[:, 3:], past_key_values=first, position_ids=torch.tensor([[4, 5]]))
    assert torch.equal(counted, given_.logits)
    assert (counted - moved.logits).abs().max() > 1e-3


def test_no_token_sees_a_later_one():
    """Changing token 3 changes the logits from position 3 on and none before."""
    model = llama()
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    other = ids.clone()
    other[0, 3] = 9
    with torch.no_grad():
        a, b = model(ids).logits[0], model(other).logits[0]
    changed = (a - b).abs().amax(-1) > 1e-4
    assert changed.tolist() == [False, False, False, True, True, True]
    assert torch.equal(a[:3], b[:3])


def test_logits_to_keep_are_the_last_ones():
    model, ids = llama(), torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        whole = model(ids).logits
        assert whole.shape == (1, 5, 13)
        assert model(ids, logits_to_keep=2).logits.shape == (1, 2, 13)
        torch.testing.assert_close(model(ids, logits_to_keep=2).logits, whole[:, 3:])


def test_a_cache_is_returned_only_where_one_is_asked_for():
    model, ids = llama(), torch.tensor([[1, 2, 3]])
    assert model(ids).past_key_values is None
    cache = model.new_cache(capacity=8)
    assert model(ids, past_key_values=cache).past_key_values is cache
    assert cache.length == 3


@settings(max_examples=25, deadline=None, derandomize=True)
@given(configs(), seeds)
def test_first_weights_come_from_the_generator_alone(fields, seed):
    """The same generator, the same weights; torch's own generator is where it was."""
    config = LlamaConfig(**fields)
    before = torch.get_rng_state()
    one = Llama(config, torch.Generator().manual_seed(seed)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # somebody draws in between
    two = Llama(config, torch.Generator().manual_seed(seed)).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = Llama(config, torch.Generator().manual_seed(seed + 1)).state_dict()
    assert not torch.equal(one["embed.weight"], other["embed.weight"])


def test_first_weights_have_the_stated_spread():
    """N(0, 0.02²): the deviation of n draws strays by about 0.02/√(2n), here 0.0002. Norms: 1."""
    model = Llama(
        LlamaConfig(97, 2, 4, 2, 64, 80, 8, tie_embeddings=False), torch.Generator().manual_seed(0)
    )
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == 1).all(), name
        else:
            deviations = 0.02 / math.sqrt(2 * p.numel())
            assert abs(p.std().item() - 0.02) < 4 * deviations, name


def test_tied_embeddings_are_one_matrix():
    """V = 13, C = 24, tied: one (13, 24) matrix; untied: two."""
    def count(tied):
        return sum(p.shape == (13, 24) for p in llama(tie_embeddings=tied).parameters())

    assert count(True) == 1 and count(False) == 2


IDS = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize("shape", [(1, 0), (0, 3), (3,), (1, 3, 1)])
def test_an_empty_prompt_or_no_batch_is_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(B, T\) with at least one token"):
        llama()(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("bad", [-1, -100, 13])
def test_ids_outside_the_vocabulary_are_refused_with_both_ranges(bad):
    low, high = min(bad, 1), max(bad, 2)
    with pytest.raises(ValueError, match=rf"span {low}\.\.{high}, the vocabulary 0\.\.12.*tokeni"):
        llama()(torch.tensor([[1, bad, 2]]))


def test_a_prompt_longer_than_the_context_is_refused_by_how_much():
    """block_size 16: 16 tokens pass, 19 reach position 18, three too far; a cache counts too."""
    model = llama()
    ids = torch.ones(1, 19, dtype=torch.long)
    assert model(ids[:, :16]).logits.shape[1] == 16
    with pytest.raises(ValueError, match="position 18, 3 beyond the context of 16.*shorten"):
        model(ids)
    with torch.no_grad():
        cache = model(ids[:, :16], use_cache=True).past_key_values
        for more in (1, 2):
            with pytest.raises(ValueError, match=f"position {15 + more}, {more} beyond"):
                model(ids[:, :more], past_key_values=cache)
    assert cache.length == 16


def test_positions_not_columns_count_against_the_context():
    """20 columns of which 8 are padding fit in a context of 16; position 16 does not."""
    model = llama()
    ids, mask = torch.ones(1, 20, dtype=torch.long), torch.ones(1, 20, dtype=torch.long)
    mask[:, :8] = 0
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
        torch.testing.assert_close(padded[:, 8:], model(ids[:, 8:]).logits, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="position 16, 1 beyond"):
        model(IDS, position_ids=torch.tensor([[0, 1, 16]]))


@pytest.mark.parametrize("shape", [(1, 2), (1, 4), (2, 3), (3,), (1, 1, 3)])
def test_a_mask_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"attention_mask has shape .*expected \(1, 3\)"):
        llama()(IDS, attention_mask=torch.ones(shape))


def test_a_mask_must_cover_the_cached_tokens_too():
    model = llama()
    with torch.no_grad():
        cache = model(IDS, use_cache=True).past_key_values
        with pytest.raises(ValueError, match=r"expected \(1, 5\): one entry for each cached"):
            model(IDS[:, :2], attention_mask=torch.ones(1, 2), past_key_values=cache)


@pytest.mark.parametrize("shape", [(3,), (1, 2), (4, 3)])
def test_positions_of_the_wrong_shape_are_refused(shape):
    """With four heads, positions (4, 3) or (4,) could pass for one row a head."""
    with pytest.raises(ValueError, match=r"position_ids has shape .*expected .*\(1, 3\)"):
        llama()(IDS, position_ids=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 26}, "n_embd=26 must be a multiple of n_head=4"),
        ({"n_kv_head": 3}, "n_head=4 must be a multiple of n_kv_head=3"),
        ({"n_embd": 20}, "even head width, got 5"),
        ({"n_head": 0}, "n_head=0 must be a whole number"),
        ({"n_kv_head": -2}, "n_kv_head=-2 must be a whole number"),
        ({"vocab_size": "13"}, "vocab_size='13' must be a whole number"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        llama(**changes)
