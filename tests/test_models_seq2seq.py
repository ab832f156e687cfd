"""T5 and BART: parity with transformers, positions, the two kinds of mask, generation."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_record import Parity
from random_families import SEEDS, SIZES, build, there_and_back
from random_models import batches, chunks, compact
from transformers.models.t5.modeling_t5 import T5Attention

from course_lib.generation import generate_seq2seq
from course_lib.models import BART, T5, BARTConfig, T5Config, from_transformers
from course_lib.models.layers import RelativePositions, clamp_half

CLASSES = {"T5": "T5ForConditionalGeneration", "BART": "BartForConditionalGeneration"}
SMALL = {"vocab_size": 11, "layers": 2, "heads": 3, "width": 4, "inner": 9, "length": 16,
         "tied": True}  # fmt: skip


@pytest.mark.parametrize("piece", CLASSES)
def test_logits_and_hidden_states_are_those_of_transformers(piece):
    """Source and target padded at either end; the target in one pass or in pieces, with a cache.
    BART's positions stand in columns over there, so it gets its padding on the right."""
    hf_class = getattr(transformers, CLASSES[piece])

    @settings(max_examples=28, deadline=None, derandomize=True)
    @given(st.data(), st.fixed_dictionaries(SIZES), SEEDS, st.sets(st.integers(1, 11), max_size=3))
    def run(data, sizes, seed, cuts):
        hf_model = build(hf_class, sizes, seed)
        model = there_and_back(hf_model)
        ids, mask = data.draw(batches(sizes["vocab_size"]))
        target, target_mask = data.draw(batches(sizes["vocab_size"]))
        rows = min(len(ids), len(target))
        ids, mask, target, target_mask = (x[:rows] for x in (ids, mask, target, target_mask))
        source_mask = data.draw(st.sampled_from([mask, mask.bool(), None]))
        seen_mask = data.draw(st.sampled_from([target_mask, None]))
        inputs = {"input_ids": ids, "attention_mask": source_mask}
        with torch.no_grad():
            both = {"decoder_input_ids": target, "decoder_attention_mask": seen_mask}
            ours = model(**inputs, **both)
            there, there_mask = {**inputs, **both, "use_cache": False}, (mask, target_mask)
            if piece == "BART":
                if source_mask is not None:
                    there["attention_mask"], there["input_ids"] = compact(mask, ids)
                if seen_mask is not None:
                    (there["decoder_attention_mask"],
                     there["decoder_input_ids"]) = compact(target_mask, target)  # fmt: skip
                there_mask = compact(mask)[0], compact(target_mask)[0]
            theirs = hf_model(**there)
            cache, outs = None, []
            for start, end in chunks(target.shape[1], cuts):
                out = model(
                    **inputs if start == 0 else {"attention_mask": source_mask},
                    decoder_input_ids=target[:, start:end],
                    decoder_attention_mask=None if seen_mask is None else seen_mask[:, :end],
                    encoder_outputs=None if start == 0 else (ours.encoder_last_hidden_state,),
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = out.past_key_values
                outs.append(out.logits)
        parity.tried()
        read, read_there, kept, kept_there = (slice(None),) * 4
        if source_mask is not None:
            read, read_there = mask.bool(), there_mask[0].bool()
        if seen_mask is not None:
            kept, kept_there = target_mask.bool(), there_mask[1].bool()
        parity.compare(
            ours.encoder_last_hidden_state[read], theirs.encoder_last_hidden_state[read_there]
        )
        parity.compare(ours.logits[kept], theirs.logits[kept_there])
        parity.compare(torch.cat(outs, dim=1)[kept], theirs.logits[kept_there])

    with Parity(piece, f"transformers.{CLASSES[piece]}", 1e-5) as parity:
        run()


# --- relative positions -------------------------------------------------------------------------


def test_buckets_by_hand():
    """8 buckets up to distance 16. A decoder: 0 1 2 3 have their own, then 4 + 4 log(d/4)/log(4)
    rounded down: 4 4 for 4 5, 5 for 6 and 7 (log(6/4)/log 4 = .29, of 4: 1.17), 6 from 8,
    7 from 12 (log 3/log 4 = .79, of 4: 3.17). An encoder has 4 for each side: 0 1, then 2 for 2..5
    (log(d/2)/log(8), of 2), 3 from 6 (log 3/log 8 = .53, of 2: 1.06); keys that follow get 4 more.
    """
    decoder = RelativePositions(8, 16, 1, bidirectional=False)
    back = -torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 15, 16, 99])
    assert decoder.bucket(back).tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7, 7]
    assert decoder.bucket(torch.tensor([1, 5])).tolist() == [0, 0]  # hidden by the causal mask
    encoder = RelativePositions(8, 16, 1, bidirectional=True)
    assert encoder.bucket(-torch.tensor([0, 1, 2, 5, 6, 99])).tolist() == [0, 1, 2, 2, 3, 3]
    assert encoder.bucket(torch.tensor([1, 2, 5, 6, 99])).tolist() == [5, 6, 6, 7, 7]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([4, 8, 12, 32]), st.integers(20, 300), st.booleans())
def test_buckets_are_those_of_transformers(n_bucket, max_distance, bidirectional):
    offset = torch.arange(-400, 400)
    ours = RelativePositions(n_bucket, max_distance, 1, bidirectional).bucket(offset)
    theirs = T5Attention._relative_position_bucket(offset, bidirectional, n_bucket, max_distance)
    assert torch.equal(ours, theirs)


def test_the_last_queries_get_the_last_rows():
    """With a cache, 2 new of 5 tokens have the biases that they have among all 5."""
    table = RelativePositions(8, 16, 3, bidirectional=False)
    assert torch.equal(table(2, 5), table(5, 5)[:, :, 3:])


# --- what may see what --------------------------------------------------------------------------


def tiny(cls, seed=0):
    """Weights ten times the usual, so that everything shows."""
    config = (T5Config(11, 2, 3, 4, 12, 10, n_bucket=8, max_distance=16) if cls is T5
              else BARTConfig(11, 2, 3, 12, 10, 16))  # fmt: skip
    model = cls(config, torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return model


SOURCE, TARGET = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[2, 7, 8, 9, 10]])


@pytest.mark.parametrize("cls", [T5, BART])
def test_the_encoder_sees_both_sides_the_decoder_only_the_past_and_all_of_the_source(cls):
    model = tiny(cls)
    source, target = SOURCE.clone(), TARGET.clone()
    source[0, -1], target[0, 2] = 10, 3
    with torch.no_grad():
        base = model(SOURCE, decoder_input_ids=TARGET)
        other_source = model(source, decoder_input_ids=TARGET)
        other_target = model(SOURCE, decoder_input_ids=target)
    states = (base.encoder_last_hidden_state - other_source.encoder_last_hidden_state).abs()
    assert (states.amax(-1) > 1e-4).all()
    assert ((base.logits - other_source.logits).abs().amax(-1) > 1e-5).all()
    moved = (base.logits - other_target.logits).abs().amax(-1)[0] > 0
    assert moved.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("cls", [T5, BART])
def test_padding_of_source_and_target_changes_nothing(cls):
    model, pad = tiny(cls), torch.tensor([[1, 1]])
    mask, target_mask = torch.tensor([[1] * 4 + [0] * 2]), torch.tensor([[1] * 5 + [0] * 2])
    with torch.no_grad():
        alone = model(SOURCE, decoder_input_ids=TARGET).logits
        padded = model(torch.cat([SOURCE, pad], 1), mask,
                       torch.cat([TARGET, pad], 1), target_mask).logits[:, :5]  # fmt: skip
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cls", [T5, BART])
def test_the_source_is_read_once(cls):
    """The second step gets another source, but keys and values of the first are in the cache."""
    model = tiny(cls)
    with torch.no_grad():
        first = model(SOURCE, decoder_input_ids=TARGET[:, :3], use_cache=True)
        cache = first.past_key_values
        other = (torch.zeros_like(first.encoder_last_hidden_state),)
        second = model(decoder_input_ids=TARGET[:, 3:], encoder_outputs=other,
                       past_key_values=cache)  # fmt: skip
        whole = model(SOURCE, decoder_input_ids=TARGET)
    assert (cache.length, cache.source.length) == (5, 4)
    torch.testing.assert_close(second.logits, whole.logits[:, 3:], atol=1e-5, rtol=0)


# --- fp16 ---------------------------------------------------------------------------------------


def test_clamping_by_hand():
    """fp16 ends at 65,504. Where there is an infinity all stays 1,000 below, which is rounded to
    64,512, else nothing changes; float32 and bfloat16 reach farther and are left alone."""
    inf = float("inf")
    x = torch.tensor([inf, -inf, 65504.0, 3.0], dtype=torch.float16)
    assert clamp_half(x).tolist() == [64512.0, -64512.0, 64512.0, 3.0]
    assert clamp_half(x[2:]).tolist() == [65504.0, 3.0]
    for dtype in (torch.float32, torch.bfloat16):
        assert clamp_half(x.to(dtype)).equal(x.to(dtype))


@pytest.mark.parametrize("inner", [9, 10])  # plain and gated
def test_t5_in_fp16_stays_finite_where_sums_overflow(inner):
    """Feed-forwards of large weights: the sums pass 65,504 in encoder and decoder. Without the
    clamp the next norm divides inf by inf, for each of six seeds. Transformers clamps, and its
    logits, of size 0.5, are ours up to fp16's rounding (0.012 here at most)."""
    sizes = {**SMALL, "inner": inner, "heads": 2}
    for seed in range(6):
        hf_model = build(transformers.T5ForConditionalGeneration, sizes, seed)
        with torch.no_grad():
            for name, p in hf_model.named_parameters():
                if ".wi" in name:
                    p.mul_(40)
                if ".wo." in name:
                    p.mul_(1000 if inner == 9 else 40)
        half = hf_model.half()
        ours = from_transformers(half)
        inputs = {"input_ids": SOURCE, "decoder_input_ids": TARGET}
        with torch.no_grad():
            a, b = ours(**inputs).logits, half(**inputs, use_cache=False).logits
            for block in (b for s in (ours.encoder, ours.decoder) for b in s.blocks):
                block.clamp = False
            unclamped = ours(**inputs).logits
        assert a.dtype == torch.float16 and a.isfinite().all() and b.isfinite().all()
        torch.testing.assert_close(a, b, atol=0.03, rtol=0)
        assert unclamped.isnan().any()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": SOURCE}, "give decoder_input_ids"),
        ({"decoder_input_ids": TARGET}, "input_ids or encoder_outputs"),
        ({"input_ids": torch.ones(1, 17, dtype=torch.long), "decoder_input_ids": TARGET},
         "position 16, 1 beyond the context of 16"),
        ({"input_ids": SOURCE, "decoder_input_ids": TARGET + 1}, r"span 3\.\.11, the vocabulary"),
        ({"input_ids": SOURCE, "decoder_input_ids": TARGET,
          "decoder_attention_mask": torch.ones(1, 4)}, r"expected \(1, 5\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny(BART)(**inputs)


# --- generation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", CLASSES)
def test_greedy_generation_is_that_of_transformers(piece):
    """Three sources of 6, 3 and 5 tokens, padded at either end; over there BART must get them
    padded on the right. The token that the first row writes fourth is made the end: that row is
    padded from there on, and in some runs another row goes on."""
    unended = 0
    for seed in range(6):
        hf_model = build(getattr(transformers, CLASSES[piece]), SMALL, seed)
        model = there_and_back(hf_model)
        ids = torch.randint(3, 11, (3, 6), generator=torch.Generator().manual_seed(seed))
        mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [0] + [1] * 5])
        free = generate_seq2seq(model, ids, mask, max_new_tokens=12, temperature=0)
        assert free.shape == (3, 13)
        ends = {"max_new_tokens": 12, "eos_token_id": int(free[0, 4]), "pad_token_id": 1}
        ours = generate_seq2seq(model, ids, mask, temperature=0, **ends)
        right, there_ids = compact(mask, ids)
        theirs = hf_model.generate(
            there_ids, attention_mask=right, do_sample=False, num_beams=1,
            forced_eos_token_id=None, **ends,
        )  # fmt: skip
        assert ours.tolist() == theirs.tolist()
        assert generate_seq2seq(hf_model, there_ids, right, temperature=0, **ends).equal(ours)
        assert (ours[0, 5:] == 1).all()
        unended += sum(ends["eos_token_id"] not in row for row in ours[:, 1:].tolist())
    assert unended > 0


@pytest.mark.parametrize("cls", [T5, BART])
def test_sampled_generation_follows_the_decoder_without_a_cache(cls):
    """Each drawn token is the one that the whole prefix and the same number would have given."""
    from course_lib.generation import sample

    model = tiny(cls)
    out = generate_seq2seq(model, SOURCE, max_new_tokens=9, temperature=0.8,
                           generator=torch.Generator().manual_seed(3))  # fmt: skip
    g = torch.Generator().manual_seed(3)
    ids = torch.tensor([[model.config.start_token_id]])
    for _ in range(9):
        with torch.no_grad():
            logits = model(SOURCE, decoder_input_ids=ids).logits[:, -1]
        token = sample(logits, 0.8, uniforms=torch.rand(1, generator=g))
        ids = torch.cat([ids, token[:, None]], dim=1)
    assert out.tolist() == ids.tolist()
    assert len(set(out[0].tolist())) > 2


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="max_new_tokens=17 is more than the decoder's context"):
        generate_seq2seq(tiny(BART), SOURCE, max_new_tokens=17)
