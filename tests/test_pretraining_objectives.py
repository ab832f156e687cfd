"""Masked, span-corruption and denoising objectives, against transformers and by hand.

Chi-square bounds are the 0.1 % points of the table: 13.82 (2 degrees of freedom), 16.27 (3),
26.12 (8). Seeds are fixed, so nothing here fails by chance.
"""

import doctest
import math
import random
from collections import Counter
from functools import partial

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from course_lib import denoising, pretraining
from course_lib.denoising import poisson_span_lengths, random_span_mask
from course_lib.ops import IGNORE_INDEX
from course_lib.pretraining import (
    collate_pairs,
    corrupt_spans,
    denoise,
    infill_text,
    mask_tokens,
    masked_batches,
    masked_lm_loss,
    permute_sentences,
    seq2seq_loss,
    shift_right,
)

PAD, CLS, MASK, SENTINELS = 0, 1, 2, range(999, 899, -1)
often = settings(deadline=None, derandomize=True, max_examples=150)
seeds = st.integers(0, 2**31)
words = st.integers(10, 60)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def chi_square(observed, expected):
    return sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))


def is_subsequence(short, long):
    rest = iter(long)
    return all(token in rest for token in short)


@pytest.mark.parametrize("module", [pretraining, denoising])
def test_the_docstrings_show_what_comes_out(module):
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted and not result.failed


# --- masked language modelling ------------------------------------------------------------------

VOCAB = 50


@pytest.fixture(scope="module")
def collator():
    vocab = {"[PAD]": PAD, "[CLS]": CLS, "[MASK]": MASK} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, "w3")),
        pad_token="[PAD]", cls_token="[CLS]", mask_token="[MASK]",
    )  # fmt: skip
    assert len(tokenizer) == VOCAB
    return transformers.DataCollatorForLanguageModeling(tokenizer, seed=3)


def rows_with_specials():
    """(400, 500): 399 words from 10 to 49 and a [CLS] before them, padding behind."""
    rows = torch.randint(10, VOCAB, (400, 500), generator=gen(1))
    rows[:, 0], rows[:, 400:] = CLS, PAD
    return rows


def fates(original, corrupted, labels):
    """How many words were not chosen, became [MASK], became another, or stayed though chosen."""
    word = (original != PAD) & (original != CLS)
    chosen = labels != IGNORE_INDEX
    masked, same = corrupted == MASK, corrupted == original
    kinds = [~chosen & word, chosen & masked, chosen & ~masked & ~same, chosen & same]
    return [int(kind.sum()) for kind in kinds]


def test_mask_tokens_has_the_statistics_and_the_labels_of_transformers(collator):
    """400 * 399 = 159,600 words. A random word is one of 50, and so [MASK] with 1/50 and the word
    itself with 1/50: of all words 0.85 are not chosen, 0.15 * (0.8 + 0.1/50) = 0.1203 show [MASK],
    0.15 * 0.1 * 48/50 = 0.0144 another word, 0.15 * (0.1 + 0.1/50) = 0.0153 themselves.

    10 % random among those *left* after masking (0.15 * 0.2 * 0.1 = 0.003) would miss the bound by
    far, and so would a rest that carries no label.
    """
    rows = rows_with_specials()
    expected = [159_600 * p for p in (0.85, 0.1203, 0.0144, 0.0153)]
    ours = mask_tokens(rows, mask_id=MASK, vocab_size=VOCAB, special_ids={PAD, CLS},
                       generator=gen())  # fmt: skip
    theirs = collator([{"input_ids": row} for row in rows.tolist()])
    theirs = theirs["input_ids"], theirs["labels"]
    counts = [fates(rows, *ours), fates(rows, *theirs)]
    for (corrupted, labels), count in zip((ours, theirs), counts):
        assert sum(count) == 159_600
        assert chi_square(count, expected) < 16.27
        chosen = labels != IGNORE_INDEX
        assert torch.equal(labels[chosen], rows[chosen])  # the original, also where it stayed
        assert torch.equal(corrupted[~chosen], rows[~chosen])
        assert not chosen[:, 0].any() and not chosen[:, 400:].any()
    both = [sum(pair) / 2 for pair in zip(*counts)]
    assert chi_square(counts[0], both) + chi_square(counts[1], both) < 16.27


def test_random_words_are_uniform_and_every_position_is_as_likely():
    """160,000 tokens, all replaced by one of 4 words: 40,000 each; in 4 columns, half chosen:
    20,000 each, of variance 10,000, so the sum of squares over 10,000 is chi-square(4) < 18.47."""
    rows = torch.full((40_000, 4), 30)
    out, labels = mask_tokens(
        rows, mask_id=99, vocab_size=4, mask_prob=0.5, replace_prob=0, random_prob=1,
        generator=gen(),
    )  # fmt: skip
    chosen = labels != IGNORE_INDEX
    total = int(chosen.sum())
    assert chi_square(out[chosen].bincount(minlength=4).tolist(), 4 * [total / 4]) < 16.27
    assert sum((int(c) - 20_000) ** 2 / 10_000 for c in chosen.sum(0)) < 18.47


def test_mask_tokens_takes_any_integers():
    """From uint8, -100 would be 156; labels and inputs are those of the same ids in int64."""
    ids = torch.arange(3, 40)[None]
    outs = [mask_tokens(ids.to(dtype), mask_id=1, vocab_size=40, mask_prob=0.5, generator=gen())
            for dtype in (torch.int64, torch.uint8)]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
    assert (outs[0][1] == IGNORE_INDEX).any()


@often
@given(st.lists(st.lists(st.integers(0, 20), min_size=6, max_size=6), min_size=1), seeds)
def test_mask_tokens_leaves_specials_masks_and_its_argument_alone(rows, seed):
    rows = torch.tensor(rows)
    before = rows.clone()
    out, labels = mask_tokens(rows, mask_id=5, vocab_size=40, special_ids=(0, 1, 2),
                              mask_prob=0.9, generator=gen(seed))  # fmt: skip
    assert torch.equal(rows, before)
    protected = (rows <= 2) | (rows == 5)
    assert torch.equal(out[protected], rows[protected])
    assert (labels[protected] == IGNORE_INDEX).all()


def test_dynamic_masks_are_new_each_epoch_and_static_ones_return_in_the_same_order():
    """With two static copies epoch 0 and 2 have the same masks, 0 and 1 other ones."""
    rows = torch.arange(10, 130).reshape(6, 20)
    rows[0, 15:] = PAD

    def epochs(static_masks):
        mask = partial(mask_tokens, mask_id=MASK, vocab_size=200, special_ids=(PAD,),
                       mask_prob=0.5, generator=gen(1))  # fmt: skip
        batches = list(masked_batches(rows, mask, batch_size=4, epochs=3, pad_id=PAD,
                                      static_masks=static_masks, generator=gen(2)))  # fmt: skip
        assert [len(batch["labels"]) for batch in batches] == [4, 2] * 3
        seen = []
        for batch in batches:
            chosen = batch["labels"] != IGNORE_INDEX
            original = torch.where(chosen, batch["labels"], batch["input_ids"])
            assert torch.equal(batch["attention_mask"], (original != PAD).long())
            seen.append((original[:, 0], dict(zip(original[:, 0].tolist(), chosen.tolist()))))
        order = [torch.cat([seen[k][0], seen[k + 1][0]]).tolist() for k in (0, 2, 4)]
        return order, [seen[k][1] | seen[k + 1][1] for k in (0, 2, 4)]


    order, dynamic = epochs(None)
    assert len({tuple(o) for o in order}) == 3 and len({tuple(sorted(o)) for o in order}) == 1
    assert dynamic[0] != dynamic[1] and dynamic[0] != dynamic[2]
    for copies, same in ((1, (0, 1)), (2, (0, 2))):
        static_order, static = epochs(copies)
        assert static_order == order
        assert static[same[0]] == static[same[1]]
        assert (static[0] == static[1]) is (copies == 1)


def tiny_bert():
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )).eval()  # fmt: skip


def test_masked_lm_loss_is_that_of_transformers_and_zero_without_masks():
    model, rows = tiny_bert(), rows_with_specials()[:3, 390:410]
    input_ids, labels = mask_tokens(rows, mask_id=MASK, vocab_size=VOCAB, special_ids={PAD, CLS},
                                    mask_prob=0.5, generator=gen())  # fmt: skip
    batch = {"input_ids": input_ids, "labels": labels, "attention_mask": (rows != PAD).long()}
    torch.testing.assert_close(masked_lm_loss(model, batch), model(**batch).loss)
    nothing = batch | {"labels": torch.full_like(labels, IGNORE_INDEX)}
    assert masked_lm_loss(model, nothing).item() == 0
    with pytest.raises(ValueError, match=r"agree in \(B, T\)"):
        masked_lm_loss(model, batch | {"labels": labels[:, :-1]})


# --- span corruption ----------------------------------------------------------------------------


def restore(source, target, sentinels):
    """Put each span of the target back where its sentinel stands in the source."""
    spans, current = {}, None
    for token in target:
        if token in sentinels:
            current = spans[token] = []
        else:
            current.append(token)
    used = [token for token in source if token in sentinels]
    restored = [t for token in source for t in spans.get(token, [token])]
    return restored, used, list(spans)


@pytest.mark.parametrize(
    "length, density, mean, noise, spans",
    [
        (512, 0.15, 3.0, 77, 26),  # 76.8 -> 77; 25.67 -> 26: the sizes of T5's pretraining
        (100, 0.15, 3.0, 15, 5),
        (100, 0.5, 10.0, 50, 5),
        (3, 0.15, 3.0, 1, 1),  # 0.45 -> 0, raised to 1 token and 1 span
        (2, 0.9, 1.0, 1, 1),  # 1.8 -> 2, lowered to T - 1
        (10, 0.25, 1.0, 2, 2),  # 2.5 -> 2: halves go to the even number
        (10, 0.8, 1.0, 8, 2),  # 8 spans do not fit between 2 kept tokens
    ],
)
def test_span_mask_counts_by_hand(length, density, mean, noise, spans):
    for seed in range(5):
        mask = random_span_mask(length, noise_density=density, mean_span_length=mean,
                                generator=gen(seed))  # fmt: skip
        starts = mask[1:] & ~mask[:-1]
        assert mask.shape == (length,) and mask.dtype == torch.bool
        assert (int(mask.sum()), int(starts.sum())) == (noise, spans)
        assert not mask[0] and mask[-1]  # as in T5's code


def test_the_counts_are_those_of_the_published_code_but_for_a_few_halves():
    """It rounds T * 0.15 in float32, whose 0.15 lies above 0.15: a half may go up there and to the
    even number here. 3T/20 is a half for T = 10, 30, 50, ...; by hand, 190 * 0.15 = 28.5 is one."""
    different = []
    for length in range(2, 1025):
        noise = int(torch.round(torch.tensor(float(length)) * 0.15).clamp(1, length - 1))
        mask = random_span_mask(length, generator=gen())
        ours, spans = int(mask.sum()), int((mask[1:] & ~mask[:-1]).sum())
        if ours != noise:
            assert ours == noise - 1 and length % 20 == 10
            different.append(length)
        else:
            assert spans == max(1, int(torch.round(torch.tensor(float(noise)) / 3.0)))
    assert different[0] == 190 and len(different) == 8


def test_one_span_is_always_the_end_of_the_sequence():
    """With the defaults 30 tokens have N = round(4.5) = 4, S = round(4 / 3) = 1; 31 have 5 and 2;
    the docstring names that limit."""
    masks = [random_span_mask(30, generator=gen(seed)) for seed in range(5)]
    assert all(mask.tolist() == [False] * 26 + [True] * 4 for mask in masks)
    masks = {tuple(random_span_mask(31, generator=gen(seed)).tolist()) for seed in range(5)}
    assert len(masks) > 1


def test_all_span_masks_are_equally_likely():
    """T = 8, half noise, spans of 2: 4 dropped and 4 kept tokens, in two parts each: 1+3, 2+2, 3+1,
    so 3 * 3 = 9 masks. 9,000 draws give 1,000 of each. Independent span starts would not."""
    generator = gen(7)
    counts = Counter(
        tuple(random_span_mask(8, noise_density=0.5, mean_span_length=2.0,
                               generator=generator).tolist())
        for _ in range(9000)
    )  # fmt: skip
    assert len(counts) == 9
    assert chi_square(counts.values(), 9 * [1000]) < 26.12


@often
@given(st.lists(words, min_size=2, max_size=80), st.floats(0.05, 0.95), st.floats(1, 8), seeds)
def test_source_and_target_make_up_the_input(ids, density, mean, seed):
    """N and S by the formula; the source has T - N + S tokens, the target N + S + 1."""
    noise = min(max(round(len(ids) * density), 1), len(ids) - 1)
    spans = min(max(round(noise / mean), 1), noise, len(ids) - noise)
    source, target = corrupt_spans(ids, sentinel_ids=SENTINELS, noise_density=density,
                                   mean_span_length=mean, generator=gen(seed))  # fmt: skip
    restored, used, named = restore(source, target, SENTINELS)
    assert restored == ids
    assert used == list(SENTINELS[:spans])  # 999, 998, ...: falling, as T5's
    assert named == list(SENTINELS[: spans + 1]) and target[-1] == SENTINELS[spans]
    assert (len(source), len(target)) == (len(ids) - noise + spans, noise + spans + 1)


@often
@given(st.lists(st.one_of(words, st.sampled_from([PAD, CLS])), max_size=60), seeds)
def test_special_tokens_stay_in_the_source_and_out_of_the_target(body, seed):
    ids = [CLS, 10, *body, 11, PAD]
    source, target = corrupt_spans(torch.tensor(ids), sentinel_ids=list(range(100, 160)),
                                   special_ids={PAD, CLS}, noise_density=0.5,
                                   generator=gen(seed))  # fmt: skip
    assert not {PAD, CLS} & set(target)
    restored, used, named = restore(source, target, range(100, 160))
    assert restored == ids and used == sorted(used) and named[:-1] == used
    n = sum(token >= 10 for token in ids)
    assert len(target) - len(named) == min(max(round(n * 0.5), 1), n - 1)
    assert source[0] == CLS and source[-1] == PAD


# --- BART ---------------------------------------------------------------------------------------


def test_poisson_lengths_have_the_poisson_distribution():
    """Poisson(3): e^-3 3^k / k! = 0.0498, 0.1494, 0.2240, 0.2240, 0.1680, 0.1008, 0.0504, 0.0335
    for k = 0 to 6 and more. Eight classes: the 0.1 % point of 7 degrees of freedom is 24.32.
    Cutting zeros, or raising them to 1, would miss the first class altogether."""
    lengths = poisson_span_lengths(60_000, 3.0, gen(1))
    assert sum(lengths) == 60_000
    chances = [math.exp(-3) * 3**k / math.factorial(k) for k in range(7)]
    chances.append(1 - sum(chances))
    observed = Counter(min(length, 7) for length in lengths[:-1])
    n = len(lengths) - 1
    assert chi_square([observed[k] for k in range(8)], [n * p for p in chances]) < 24.32


@often
@given(st.integers(1, 80), st.floats(0.05, 0.95), st.floats(0.5, 6), seeds)
def test_infilling_drops_the_right_number_and_one_mask_stands_for_each_span(n, ratio, lam, seed):
    """The lengths are drawn first, so the same seed tells how many spans there must be."""
    ids = list(range(10, 10 + n))  # all different: what is left tells what was dropped
    dropped = max(1, round(n * ratio))
    source = infill_text(ids, mask_id=MASK, mask_ratio=ratio, poisson_lambda=lam,
                         generator=gen(seed))  # fmt: skip
    kept = [token for token in source if token != MASK]
    assert len(kept) == n - dropped and is_subsequence(kept, ids)
    assert source.count(MASK) == len(poisson_span_lengths(dropped, lam, gen(seed)))
    for left, right in zip(source, source[1:]):  # between neighbours that are kept nothing is lost
        assert MASK in (left, right) or right == left + 1


def test_infilling_arrangements_are_equally_likely():
    """One of 3 tokens, and lambda so large that the span has length 1: the mask is at each place in
    a third of 9,000 draws (2 degrees of freedom)."""
    generator, counts = gen(2), Counter()
    for _ in range(9000):
        source = infill_text([10, 11, 12], mask_id=MASK, poisson_lambda=60, generator=generator)
        counts[tuple(source)] += 1
    expected = {(MASK, 11, 12), (10, MASK, 12), (10, 11, MASK)}
    assert set(counts) == expected
    assert chi_square(counts.values(), 3 * [3000]) < 13.82


def test_spans_of_no_tokens_are_masks_put_in_anywhere_between_the_specials():
    """lambda = 0.5 makes many: in front, between and at the end, never outside [CLS] ... [PAD]."""
    generator, seen = gen(3), Counter()
    for _ in range(300):
        source = infill_text([CLS, 10, 11, 12, PAD], mask_id=MASK, special_ids={CLS, PAD},
                             poisson_lambda=0.5, generator=generator)  # fmt: skip
        assert source[0] == CLS and source[-1] == PAD
        kept = [token for token in source if token >= 10]
        assert len(kept) == 2
        seen[source[1] == MASK, source[-2] == MASK, source.count(MASK) > 1] += 1
    assert {key[:2] for key in seen} == {(a, b) for a in (True, False) for b in (True, False)}
    assert any(more for *_, more in seen)


@often
@given(st.lists(st.one_of(words, st.sampled_from([PAD, CLS])), max_size=50), seeds)
def test_no_special_token_is_lost_and_no_mask_reaches_over_one(body, seed):
    """Between two specials with tokens missing there is a mask: nothing vanishes without one."""
    ids = [CLS, *body, 10]
    source = infill_text(ids, mask_id=MASK, special_ids={PAD, CLS}, mask_ratio=0.6,
                         generator=gen(seed))  # fmt: skip
    assert [t for t in source if t in (PAD, CLS)] == [t for t in ids if t in (PAD, CLS)]

    def pieces(tokens):
        out = [[]]
        for token in tokens:
            if token in (PAD, CLS):
                out.append([])
            else:
                out[-1].append(token)
        return out

    for before, after in zip(pieces(ids), pieces(source), strict=True):
        kept = [token for token in after if token != MASK]
        assert is_subsequence(kept, before)
        assert len(kept) == len(before) or MASK in after


@often
@given(st.lists(st.one_of(st.integers(10, 14), st.sampled_from([9, 9, CLS])), max_size=20), seeds)
def test_sentences_are_permuted_within_their_document(ids, seed):
    """9 ends a sentence. Each stretch between specials keeps its place and its set of sentences."""

    def documents(tokens):
        """Sentences, counted, of each stretch between two specials."""
        docs, sentence = [[]], []
        for token, following in zip(tokens, [*tokens[1:], CLS]):
            if token == CLS:
                docs.append([])
                continue
            sentence.append(token)
            if following == CLS or (token == 9 and following != 9):
                docs[-1].append(tuple(sentence))
                sentence = []
        return docs

    out = permute_sentences(ids, sentence_end_ids={9}, special_ids={CLS}, generator=gen(seed))
    assert [t for t, token in enumerate(out) if token == CLS] == [
        t for t, token in enumerate(ids) if token == CLS
    ]

    def made_of(tokens, sentences):
        """Whether the tokens are these sentences, each used as often as it is there."""
        if not tokens:
            return not sentences
        return any(
            tuple(tokens[: len(s)]) == s and made_of(tokens[len(s) :], sentences - Counter([s]))
            for s in sentences
        )

    position = 0
    for document in documents(ids):
        end = position + sum(map(len, document))
        assert Counter(out[position:end]) == Counter(token for s in document for token in s)
        assert made_of(out[position:end], Counter(document))
        position = end + 1


def test_all_orders_of_three_sentences_are_equally_likely():
    """3! = 6 orders, 1,000 each of 6,000; 5 degrees of freedom: 20.52. Identity included."""
    generator = gen(4)
    ids = [10, 9, 11, 12, 9, 13, 9]
    orders = Counter(
        tuple(permute_sentences(ids, sentence_end_ids={9}, generator=generator))
        for _ in range(6000)
    )
    assert len(orders) == 6 and tuple(ids) in orders
    assert chi_square(orders.values(), 6 * [1000]) < 20.52


@often
@given(st.lists(st.one_of(words, st.just(9)), min_size=1, max_size=60), seeds)
def test_denoise_has_the_original_as_target_and_hides_a_permutation_of_it(ids, seed):
    ids = [CLS, *ids, PAD]
    source, target = denoise(torch.tensor(ids), mask_id=MASK, sentence_end_ids={9},
                             special_ids={CLS, PAD}, generator=gen(seed))  # fmt: skip
    assert target == ids
    permuted = permute_sentences(ids, sentence_end_ids={9}, special_ids={CLS, PAD},
                                 generator=gen(seed))  # fmt: skip
    kept = [token for token in source if token != MASK]
    assert is_subsequence(kept, permuted)
    assert len(ids) - len(kept) == max(1, round((len(ids) - 2) * 0.3))


# --- batches and the loss of encoder-decoders ---------------------------------------------------


def pairs():
    rows = [list(range(10, 10 + n)) for n in (12, 5, 20)]
    return [corrupt_spans(row, sentinel_ids=range(49, 39, -1), generator=gen()) for row in rows]


def tiny_t5():
    return transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )), 0  # fmt: skip


def tiny_bart():
    return transformers.BartForConditionalGeneration(transformers.BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1, pad_token_id=0,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, decoder_start_token_id=2,
    )), 2  # fmt: skip


@pytest.mark.parametrize("build", [tiny_t5, tiny_bart])
def test_seq2seq_loss_is_that_of_transformers_which_shifts_the_labels_itself(build):
    """The targets differ in length, so a loss over padding or over a second shift would differ."""
    torch.manual_seed(0)
    model, start = build()
    model.eval()
    batch = collate_pairs(pairs(), pad_id=0, decoder_start_token_id=start, eos_id=1)
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                   labels=batch["labels"])  # fmt: skip
    torch.testing.assert_close(seq2seq_loss(model, batch), theirs.loss)


def test_shift_right_is_that_of_t5_and_bart():
    labels = torch.tensor([[7, 8, 1, -100, -100], [9, 1, -100, -100, -100]])
    by_hand = torch.tensor([[2, 7, 8, 1, 0], [2, 9, 1, 0, 0]])
    before = labels.clone()
    ours = shift_right(labels, decoder_start_token_id=2, pad_id=0)
    assert torch.equal(ours, by_hand) and torch.equal(labels, before)
    from transformers.models.bart.modeling_bart import shift_tokens_right

    assert torch.equal(ours, shift_tokens_right(labels, 0, 2))
    model, _ = tiny_t5()
    model.config.decoder_start_token_id = 2
    assert torch.equal(ours, model._shift_right(labels))


# --- chance and bad input -----------------------------------------------------------------------

IDS = list(range(10, 50))
CALLS = {
    "mask_tokens": lambda g: [
        part.tolist() for part in mask_tokens(
            torch.tensor([IDS]), mask_id=MASK, vocab_size=VOCAB, generator=g)
    ],
    "corrupt_spans": lambda g: corrupt_spans(IDS, sentinel_ids=SENTINELS, generator=g),
    "infill_text": lambda g: infill_text(IDS, mask_id=MASK, generator=g),
    "permute_sentences": lambda g: permute_sentences(
        IDS, sentence_end_ids={12, 20, 25, 33}, generator=g),
    "denoise": lambda g: denoise(IDS, mask_id=MASK, sentence_end_ids={20}, generator=g),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_chance_comes_from_the_generator_alone(name):
    call = CALLS[name]
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    first = call(gen(5))
    torch.rand(1)
    torch.set_rng_state(torch_state)
    assert call(gen(5)) == first
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    assert any(call(gen(seed)) != first for seed in range(5))
    generator = gen(5)
    assert call(generator) == first and any(call(generator) != first for _ in range(5))


spans = partial(corrupt_spans, IDS, sentinel_ids=SENTINELS, generator=gen())
infill = partial(infill_text, IDS, mask_id=MASK, generator=gen())
mlm = partial(mask_tokens, torch.tensor([IDS]), mask_id=MASK, vocab_size=VOCAB, generator=gen())


@pytest.mark.parametrize(
    "call, message",
    [
        (partial(mlm, mask_prob=0.0), "mask_prob"),
        (partial(mlm, mask_prob=1.0), "mask_prob"),
        (partial(mlm, replace_prob=0.8, random_prob=0.3), "at most 1"),
        (partial(mlm, random_prob=-0.1), "negative"),
        (partial(spans, noise_density=0.0), "noise_density"),
        (partial(spans, noise_density=1.0), "noise_density"),
        (partial(spans, noise_density=float("nan")), "noise_density"),
        (partial(spans, mean_span_length=0.5), "at least 1 token"),
        (partial(spans, sentinel_ids=[99, 98]), "2 spans need 3 sentinels"),
        (partial(spans, sentinel_ids=[99, 98, 99]), "distinct"),
        (partial(spans, sentinel_ids=[99, 98, 20]), "absent from input_ids"),
        (partial(spans, special_ids=set(IDS[1:])), "Only 1 token"),
        (partial(infill, mask_ratio=0.0), "mask_ratio"),
        (partial(infill, mask_ratio=1.0), "mask_ratio"),
        (partial(infill, poisson_lambda=0.0), "positive"),
        (partial(infill, special_ids=set(IDS)), "Nothing can be masked"),
        (partial(infill_text, [], mask_id=MASK, generator=gen()), "Nothing can be masked"),
        (partial(mask_tokens, torch.tensor(IDS), mask_id=MASK, vocab_size=9, generator=gen()),
         r"must be \(B, T\)"),
        (partial(corrupt_spans, torch.tensor([IDS]), sentinel_ids=SENTINELS, generator=gen()),
         "ids of one sequence"),
        (partial(infill_text, torch.rand(9), mask_id=MASK, generator=gen()), "ids of one sequence"),
        (partial(permute_sentences, torch.tensor([IDS]), sentence_end_ids={9}, generator=gen()),
         "ids of one sequence"),
        (partial(shift_right, torch.tensor([1, 2]), 0, 0), r"must be \(B, T\)"),
        (partial(collate_pairs, [], pad_id=0, decoder_start_token_id=0), "There must be pairs"),
        (partial(collate_pairs, [([1], [])], pad_id=0, decoder_start_token_id=0), "empty"),
        (partial(masked_batches, torch.tensor([IDS]), mlm, batch_size=1, epochs=1, pad_id=0,
                 static_masks=0, generator=gen()), "at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
