"""Rollouts: what counts of a response is decided by position; cases by hand, then real models."""

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import llama
from text_models import Bigrams, Words
from torch.testing import assert_close

from course_lib import rollout as rollout_module
from course_lib.generation import generate
from course_lib.models import GPT2, GPT2Config
from course_lib.ops import IGNORE_INDEX, token_logprobs
from course_lib.rollout import pad_left, response_batch, response_logps, responses, rollout

NONE = IGNORE_INDEX
TEXT = Words("Q: A: cat dog end", end="end")


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(rollout_module)
    assert result.attempted >= 6 and not result.failed


# --- where a response ends ----------------------------------------------------------------------


def test_the_end_of_a_response_where_the_end_token_also_pads():
    """ids 5 6 2 7 2 2, 2 = end = padding, the prompt 5 6 2: the end token in the prompt ends
    nothing, the response is 7 2, and the last 2 is padding: mask 1 1 1 1 1 0, the end at index 4.
    Found from the ids, it would be at 1 (before the first 2), 2 or 5."""
    batch = response_batch(torch.tensor([[5, 6, 2, 7, 2, 2]]), torch.ones(1, 3), eos_token_id=2)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[NONE, NONE, NONE, 7, 2, NONE]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 4]]
    assert batch["ended"].tolist() == [True]
    scores = torch.arange(6.0)
    assert scores[int(batch["attention_mask"][0].nonzero().max())] == 4


def test_a_response_of_the_end_token_alone():
    """ids 7 2 2 2, 2 = end = padding: the first 2 counts, the others pad: 1 1 0 0. A mask from the
    ids says 1 0 0 0 (all 2 are padding) or 1 1 1 1 (none is)."""
    batch = response_batch(torch.tensor([[7, 2, 2, 2]]), torch.ones(1, 1), eos_token_id=2)
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[NONE, 2, NONE, NONE]] and batch["ended"].tolist() == [True]


def test_a_response_that_was_cut_off_has_no_end():
    """Three rows of three new tokens: cut off; ended at the last token; cut off with an end token
    in the prompt. All nine count."""
    ids = torch.tensor([[2, 5, 7, 8, 9], [4, 5, 7, 8, 2], [2, 2, 7, 8, 9]])
    mask = torch.tensor([[0, 1], [1, 1], [1, 1]])
    batch = response_batch(ids, mask, eos_token_id=2)
    assert batch["ended"].tolist() == [False, True, False]
    assert batch["labels"].tolist() == [[NONE, NONE, *row[2:]] for row in ids.tolist()]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1] * 5, [1] * 5]
    assert batch["position_ids"].tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_a_padding_token_that_the_model_wrote_is_no_padding():
    """1 pads and 2 ends. In the first row the model wrote a 1, in the second 1 1 are padding."""
    ids = torch.tensor([[5, 1, 7, 2], [5, 2, 1, 1]])
    batch = response_batch(ids, torch.ones(2, 1), eos_token_id=2)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert responses(batch) == [[1, 7, 2], [2]]


def test_any_of_several_end_tokens_ends():
    """2 and 3 end: the first of either counts. Without an end token nothing ends."""
    ids = torch.tensor([[5, 7, 3, 2], [5, 2, 3, 3], [5, 7, 7, 7]])
    batch = response_batch(ids, torch.ones(3, 1), eos_token_id=[2, 3])
    assert responses(batch) == [[7, 3], [2], [7, 7, 7]]
    assert batch["ended"].tolist() == [True, True, False]
    open_ended = response_batch(ids, torch.ones(3, 1))
    assert responses(open_ended) == ids[:, 1:].tolist() and not open_ended["ended"].any()


def test_ids_of_few_bits_have_labels():
    """-100 in uint8 would be 156."""
    batch = response_batch(torch.tensor([[5, 7, 2, 2]], dtype=torch.uint8), torch.ones(1, 2), 2)
    assert batch["labels"].tolist() == [[NONE, NONE, 2, NONE]]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, 7]], [[1, 1]], r"\(1, 2\), the prompts' mask \(1, 2\)"),
        ([[5, 7], [5, 7]], [[1]], r"\(2, 2\), the prompts' mask \(1, 1\)"),
        ([[5, 0, 7], [5, 6, 7]], [[1, 0], [1, 1]], "padded on the left"),
    ],
)
def test_what_is_no_rollout(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        response_batch(torch.tensor(ids), torch.tensor(mask), 2)


# --- sampling -----------------------------------------------------------------------------------


def test_a_rollout_by_hand():
    """After A: comes cat, then the end (4), which pads too; after dog comes dog until the limit.
    Words: Q: 0, A: 1, cat 2, dog 3, end 4; an end token in the prompt is read, and ends nothing."""
    model = Bigrams(TEXT, {"A:": {"cat": 1}, "cat": {"end": 1}, "dog": {"dog": 1}})
    batch = rollout(model, [[4, 0, 1], [3], [2]], max_new_tokens=3, eos_token_id=4, temperature=0)
    assert batch["input_ids"].tolist() == [[4, 0, 1, 2, 4, 4], [4, 4, 3, 3, 3, 3],
                                           [4, 4, 2, 4, 4, 4]]  # fmt: skip
    assert batch["labels"].tolist() == [[NONE, NONE, NONE, 2, 4, NONE],
        [NONE, NONE, NONE, 3, 3, 3], [NONE, NONE, NONE, 4, NONE, NONE]]  # fmt: skip
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1],
                                                [0, 0, 1, 1, 0, 0]]  # fmt: skip
    assert batch["ended"].tolist() == [True, False, True]
    assert responses(batch) == [[2, 4], [3, 3, 3], [4]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5), min_size=1, max_size=5),
    st.sampled_from([None, 3, (3, 7, 8)]),
    st.sampled_from([None, 0, 3]),
    st.integers(0, 10**6),
)
def test_responses_are_those_of_generate(prompts, ends, pad, seed):
    """The same draws; each response ends with its first end token or is as long as the longest."""
    model = llama(seed)
    batch = rollout(model, prompts, max_new_tokens=6, eos_token_id=ends, pad_token_id=pad,
                    temperature=1.5, generator=torch.Generator().manual_seed(seed))  # fmt: skip
    ids, mask = pad_left(prompts)
    out = generate(model, ids, mask, max_new_tokens=6, eos_token_id=ends, pad_token_id=pad,
                   temperature=1.5, generator=torch.Generator().manual_seed(seed))  # fmt: skip
    stops = () if ends is None else (ends,) if ends == 3 else ends
    for new, response, ended in zip(out[:, ids.shape[1] :].tolist(), responses(batch),
                                    batch["ended"].tolist(), strict=True):  # fmt: skip
        first = next((i for i, token in enumerate(new) if token in stops), None)
        assert ended == (first is not None)
        assert response == new[: first + 1 if ended else len(new)]
    kept = batch["input_ids"][batch["attention_mask"].bool()]
    assert kept.tolist() == [t for p, r in zip(prompts, responses(batch)) for t in (*p, *r)]


def test_the_batch_has_the_logprobs_that_the_sampler_saw():
    """Learnt positions notice every shift: the log-probabilities of the batch, read at once with
    its mask and positions, are those of each text alone, without padding."""
    model = GPT2(GPT2Config(13, 2, 2, 16, 32), torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.ndim == 2 else 1)
    prompts = [[5, 6, 7, 8], [9], [4, 4]]
    batch = rollout(model, prompts, max_new_tokens=6, eos_token_id=3,
                    generator=torch.Generator().manual_seed(4))  # fmt: skip
    assert set(batch["ended"].tolist()) == {True, False}, "the fixture has both kinds"
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        together = token_logprobs(model(**inputs).logits, batch["labels"])
        for row, (prompt, response) in enumerate(zip(prompts, responses(batch), strict=True)):
            ids = torch.tensor([[*prompt, *response]])
            alone = token_logprobs(model(ids).logits, ids)[0, len(prompt) - 1 :]
            found = together[row][batch["labels"][row, 1:] != NONE]
            assert_close(found, alone, atol=1e-5, rtol=0)


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="no rows to pad"):
        rollout(Bigrams(TEXT, {}), [], max_new_tokens=2)


# --- log-probabilities of given answers ---------------------------------------------------------


def test_logps_of_answers_by_hand():
    """p(cat | A:) = .5, p(end | cat) = .8, p(dog | A:) = .25: ln .4 and ln .25, whatever the
    lengths of the prompts beside them."""
    model = Bigrams(TEXT, {"A:": {"cat": 0.5, "dog": 0.25, "end": 0.25},
                           "cat": {"end": 0.8, "cat": 0.2}})  # fmt: skip
    logps = response_logps(model, [[0, 3, 1], [1]], [[2, 4], [3]])
    assert_close(logps, torch.tensor([0.4, 0.25]).log(), atol=1e-5, rtol=0)
    assert not logps.requires_grad


def test_logps_are_read_without_dropout():
    """The mean over dropped units would differ from call to call."""
    import transformers

    config = transformers.GPT2Config(vocab_size=17, n_layer=2, n_embd=16, n_head=4, n_positions=32,
                                     embd_pdrop=0.5, resid_pdrop=0.5, bos_token_id=None,
                                     eos_token_id=None)  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).train()
    first, again = (response_logps(model, [[5, 6], [7]], [[8], [9, 3]]) for _ in range(2))
    assert torch.equal(first, again) and model.training


@pytest.mark.parametrize(
    ("prompts", "answers"), [([[1]], []), ([[]], [[1]]), ([[1], [2]], [[1], []])]
)
def test_prompts_and_answers_without_tokens(prompts, answers):
    with pytest.raises(ValueError, match="at least one token in each"):
        response_logps(Bigrams(TEXT, {}), prompts, answers)
