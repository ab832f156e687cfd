"""The causal objective: labels by hand, the loss by hand and as transformers computes it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import batches, llama, llamas, positions

from course_lib.models import DecoderOutput, to_transformers
from course_lib.ops import IGNORE_INDEX, token_logprobs
from course_lib.pretraining import causal_labels, causal_lm_loss


def test_labels_are_the_inputs_with_padding_ignored():
    ids = torch.tensor([[7, 8, 9], [1, 5, 6]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert causal_labels(ids).tolist() == [[7, 8, 9], [1, 5, 6]]
    assert causal_labels(ids, mask).tolist() == [[7, 8, -100], [-100, 5, 6]]
    assert causal_labels(ids, mask.bool()).tolist() == [[7, 8, -100], [-100, 5, 6]]


def test_labels_are_a_copy():
    ids = torch.tensor([[7, 8, 9]])
    causal_labels(ids, torch.tensor([[0, 1, 1]]))
    causal_labels(ids)[0, 0] = 3
    assert ids.tolist() == [[7, 8, 9]]


@pytest.mark.parametrize("shape", [(3,), (1, 2), (2, 3)])
def test_a_mask_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"input_ids \(1, 3\): give one mask entry"):
        causal_labels(torch.tensor([[7, 8, 9]]), torch.ones(shape))


def always(odds):
    """A model that gives the V tokens the same odds at every position."""
    def model(input_ids, attention_mask=None):
        B, T = input_ids.shape
        return DecoderOutput(torch.tensor(odds).log().expand(B, T, len(odds)))

    return model


def test_loss_by_hand():
    """Odds 1 : 3 : 4 of tokens 0, 1, 2; [2, 1, 0] predicts 1 and 0: -(log 3/8 + log 1/8)/2 = 1.53.

    Without the shift token 2 would count as well: (log 8/4 + log 8/3 + log 8)/3 = 1.25.
    """
    loss = causal_lm_loss(always([1.0, 3, 4]), {"input_ids": torch.tensor([[2, 1, 0]])})
    assert loss.item() == pytest.approx(-(math.log(3 / 8) + math.log(1 / 8)) / 2)


def test_loss_is_the_mean_over_tokens_not_over_rows():
    """Row one predicts 1, 1, 1 (3/4 each), row two 0 alone (1/4).

    Tokens: -(3 log 3/4 + log 1/4)/4 = 0.562. A mean of the rows' means would be 0.837.
    """
    batch = {
        "input_ids": torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    expected = -(3 * math.log(3 / 4) + math.log(1 / 4)) / 4
    assert causal_lm_loss(always([1.0, 3]), batch).item() == pytest.approx(expected)


def test_given_labels_win_over_the_inputs():
    """Only the last token has a label: -log 3/4."""
    batch = {"input_ids": torch.zeros(1, 3, dtype=torch.long),
             "labels": torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 1]])}  # fmt: skip
    assert causal_lm_loss(always([1.0, 3]), batch).item() == pytest.approx(-math.log(3 / 4))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_loss_equals_transformers_own(data):
    """Right padding and random further labels ignored, against ``labels=`` of the same model."""
    model = data.draw(llamas())
    input_ids, mask = data.draw(batches(model.config.vocab_size))
    mask = mask.sort(dim=1, descending=True).values  # all padding on the right
    labels = causal_labels(input_ids, mask)
    ignored = torch.tensor(data.draw(st.lists(
        st.booleans(), min_size=labels.numel(), max_size=labels.numel()
    ))).view(labels.shape)  # fmt: skip
    labels = labels.masked_fill(ignored, IGNORE_INDEX)
    if not (labels[:, 1:] != IGNORE_INDEX).any():
        return
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    with torch.no_grad():
        theirs = to_transformers(model)(**batch).loss
        torch.testing.assert_close(causal_lm_loss(model, batch), theirs, atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_loss_equals_the_mean_of_token_logprobs(data):
    """The slow reference: every log-probability by itself, then the mean."""
    model = data.draw(llamas())
    input_ids, _ = data.draw(batches(model.config.vocab_size))
    if input_ids.shape[1] < 2:
        return
    with torch.no_grad():
        loss = causal_lm_loss(model, {"input_ids": input_ids})
        logprobs = token_logprobs(model(input_ids).logits, causal_labels(input_ids))
    torch.testing.assert_close(loss, -logprobs.mean())


def test_the_side_of_the_padding_does_not_matter():
    """The bug: on the left, padding "predicted" the first token, a term that no text has.

    With rotary positions the shift of the text itself changes nothing.
    """
    model = llama()
    right = {"input_ids": torch.tensor([[3, 4, 5, 0, 0]]),
             "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}  # fmt: skip
    left = {"input_ids": torch.tensor([[0, 0, 3, 4, 5]]),
            "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])}  # fmt: skip
    alone = causal_lm_loss(model, {"input_ids": torch.tensor([[3, 4, 5]])})
    torch.testing.assert_close(causal_lm_loss(model, right), alone)
    torch.testing.assert_close(causal_lm_loss(model, left), alone)
    assert positions(left["attention_mask"]).tolist() == [[0, 0, 0, 1, 2]]


def test_padding_gets_no_gradient():
    """Untied, so an embedding row moves only when its token was read: 3, 4, 5, not padding's 9.

    Token 5 is predicted from and predicts nothing; the last token's row stays too.
    """
    model = llama(tie_embeddings=False)
    batch = {"input_ids": torch.tensor([[3, 4, 5, 9, 9], [9, 9, 3, 4, 5]]),
             "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])}  # fmt: skip
    causal_lm_loss(model, batch).backward()
    moved = model.embed.weight.grad.abs().amax(-1) > 0
    assert moved.nonzero().flatten().tolist() == [3, 4]


def test_without_a_next_token_the_loss_is_zero():
    """One token predicts nothing: a sum of no terms, and no gradient, as in every loss here, and
    the count says so; transformers gives 0/0, nan."""
    model = llama()
    loss = causal_lm_loss(model, {"input_ids": torch.tensor([[3]])})
    loss.backward()
    assert loss.item() == loss.count.item() == 0
    assert model.embed.weight.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_ids_of_any_integers_have_the_same_loss(dtype):
    """-100 in uint8 would be 156, and cross-entropy takes int64 alone."""
    ids, mask = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[1, 1, 1, 0]])
    labels = causal_labels(ids.to(dtype), mask)
    assert labels.dtype == torch.int64 and labels.tolist() == [[3, 4, 5, -100]]
    if dtype == torch.int32:  # the embedding takes it
        batch = {"input_ids": ids, "attention_mask": mask}
        small = {"input_ids": ids.to(dtype), "attention_mask": mask}
        assert torch.equal(causal_lm_loss(llama(), small), causal_lm_loss(llama(), batch))
    for wrong in (ids.float(), ids > 3):
        with pytest.raises(ValueError, match="input_ids must be integers, one a token"):
            causal_labels(wrong)
