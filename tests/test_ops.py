"""Operations on logits and masks: numbers derived by hand, and what is masked has no say."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import ops
from course_lib.ops import (
    IGNORE_INDEX,
    entropy,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_mean,
    masked_scale,
    masked_var,
    masked_whiten,
    sequence_logprobs,
    shift_labels,
    token_logprobs,
)


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(ops)
    assert result.attempted >= 14 and not result.failed


def test_labels_move_one_to_the_left():
    """Position t predicts label t + 1; the last predicts nothing. The labels given stay."""
    labels = torch.tensor([[7, IGNORE_INDEX, 9], [4, 5, 6]])
    assert shift_labels(labels).tolist() == [[IGNORE_INDEX, 9, IGNORE_INDEX], [5, 6, IGNORE_INDEX]]
    assert labels.tolist() == [[7, IGNORE_INDEX, 9], [4, 5, 6]]
    assert shift_labels(labels[:, :1]).tolist() == [[IGNORE_INDEX]] * 2


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_labels_may_be_any_integers(dtype):
    """int32 passed every check, and cross-entropy took it for class probabilities."""
    logits = torch.tensor([[[6.0, 3, 1], [1, 2, 5], [1, 1, 98]]]).log()
    labels = torch.tensor([[2, 0, IGNORE_INDEX]])
    assert torch.equal(token_logprobs(logits, labels.to(dtype)), token_logprobs(logits, labels))
    for wrong in (labels.float(), labels == 2):
        with pytest.raises(ValueError, match="labels must be integers, one a token"):
            token_logprobs(logits, wrong)


def test_token_logprobs_by_hand():
    """V = 3, labels [2, 0, 1]. Odds of the next token are exp(logits).

    Position 0: odds 6 : 3 : 1, and the next label is 0: 6/10.
    Position 1: odds 1 : 2 : 5, and the next label is 1: 2/8.
    Position 2 predicts what no label tells. Without the shift the answers would be those for labels
    2 and 0: 1/10 and 1/8.
    """
    logits = torch.tensor([[[6.0, 3, 1], [1, 2, 5], [1, 1, 98]]]).log()
    logprobs = token_logprobs(logits, torch.tensor([[2, 0, 1]]))
    expected = torch.tensor([[math.log(0.6), math.log(0.25)]])
    torch.testing.assert_close(logprobs, expected)


def test_an_ignored_label_gives_zero_and_its_neighbours_keep_their_values():
    """Labels [1, -100, 0, 1] over V = 2, odds 1 : 3 everywhere: ignored, 1/4, 3/4.

    The -100 counts where it is predicted (entry 0), not where it is read (entry 1).
    """
    logits = torch.tensor([1.0, 3.0]).log().expand(1, 4, 2)
    logprobs = token_logprobs(logits, torch.tensor([[1, IGNORE_INDEX, 0, 1]]))
    torch.testing.assert_close(logprobs, torch.tensor([[0.0, math.log(0.25), math.log(0.75)]]))
    assert logprobs[0, 0] == 0.0


def test_sequence_logprobs_by_hand():
    """Prompt of three tokens, reply of two: logit rows 2 and 3 count, with p = e⁻¹ and e⁻² for
    their labels; the padding behind has e⁻⁹. Sum -3, mean -1.5. The padded width would give
    -3/5 or -3/6, an inverted mask -9, labels unshifted rows 3 and 4. A row without any label: 0."""
    wanted = torch.tensor([[-5.0, -5, -1, -2, -9, -9]])  # log-probability of word 1 by row
    logits = torch.stack([(1 - wanted.exp()).log(), wanted], dim=-1).repeat(2, 1, 1)  # (2, 6, 2)
    labels = torch.tensor([[-100, -100, -100, 1, 1, -100], [-100] * 6])
    torch.testing.assert_close(sequence_logprobs(logits, labels), torch.tensor([-3.0, 0]))
    means = sequence_logprobs(logits, labels, mean=True)
    torch.testing.assert_close(means, torch.tensor([-1.5, 0]))


def test_the_first_label_is_never_predicted():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    other = labels.clone()
    other[:, 0] = IGNORE_INDEX
    assert torch.equal(token_logprobs(logits, labels), token_logprobs(logits, other))


def test_no_gradient_flows_from_ignored_places():
    """d log p(y) / d logits = onehot(y) - p: with odds 1 : 3 and y = 0 that is (3/4, -3/4).

    Position 1 is the only one whose next label counts; infinite logits elsewhere do no harm.
    """
    logits = torch.tensor([[[-math.inf, 5.0], [0.0, math.log(3.0)], [7.0, -math.inf]]])
    logits.requires_grad_()
    token_logprobs(logits, torch.tensor([[1, IGNORE_INDEX, 0]])).sum().backward()
    expected = torch.tensor([[[0.0, 0.0], [0.75, -0.75], [0.0, 0.0]]])
    torch.testing.assert_close(logits.grad, expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 9), st.integers(0, 999))
def test_probabilities_of_every_possible_label_sum_to_one(B, T, V, seed):
    """Each entry is one of a distribution's V logarithms, so its V choices sum to 1."""
    logits = 5 * torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed))
    total = sum(token_logprobs(logits, torch.full((B, T), v)).exp() for v in range(V))
    torch.testing.assert_close(total, torch.ones(B, T - 1))


def test_half_precision_logits_are_normalised_in_float32():
    """4096 equal logits: log(1/4096) = -8.3178; bfloat16 would say -8.3125."""
    logits = torch.zeros(1, 2, 4096, dtype=torch.bfloat16)
    logprobs = token_logprobs(logits, torch.tensor([[0, 17]]))
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(-math.log(4096), abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 5), (1, 3, 5), (2, 3, 5, 1)])
def test_token_logprobs_refuses_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"\(B, T, V\).*\(2, 3\)"):
        token_logprobs(torch.zeros(shape), torch.zeros(2, 3, dtype=torch.long))


def test_masked_mean_by_hand():
    """Rows 1, 2, x and 4, x, x: all 7/3; rows 3/2 and 4; columns 5/2, 2, none.

    The mean of the rows' means would be 11/4, and a sum over the mask's size 7/6.
    """
    values = torch.tensor([[1.0, 2.0, 30.0], [4.0, 50.0, 60.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(masked_mean(values, mask), torch.tensor(7 / 3))
    torch.testing.assert_close(masked_mean(values, mask, dim=1), torch.tensor([1.5, 4.0]))
    torch.testing.assert_close(masked_mean(values, mask.bool(), 0), torch.tensor([2.5, 2.0, 0.0]))


def test_masked_mean_never_sees_what_is_masked():
    """nan · 0 is nan, so a product with the mask would spread it, to the gradient too."""
    values = torch.tensor([2.0, math.nan, math.inf, 4.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, False, True]))
    mean.backward()
    assert mean.item() == 3.0
    assert values.grad.tolist() == [0.5, 0.0, 0.0, 0.5]


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.tensor([5.0, 6.0]), torch.zeros(2)).item() == 0.0


def test_masked_mean_refuses_a_mask_that_would_broadcast():
    """(2, 1) against (2, 3) would count 2 instead of 6."""
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 1\)"):
        masked_mean(torch.zeros(2, 3), torch.ones(2, 1))


# --- whitening ----------------------------------------------------------------------------------


def test_whitening_by_hand():
    """0 and 4: mean 2, distances 2, population deviation 2 (with n - 1 it would be 2.83).

    Shifted: -1, 1. Centred, scaled, the mean added back: 1, 3. Scaled only: 0, 2. The 9 between
    them is masked: with it the mean would be 4.33.
    """
    values, mask = torch.tensor([[0.0, 9.0], [4.0, math.nan]]), torch.tensor([[1, 0], [1, 0]])
    close = torch.testing.assert_close
    assert masked_var(values, mask).item() == 4
    close(masked_whiten(values, mask), torch.tensor([[-1.0, 0], [1, 0]]))
    close(masked_whiten(values, mask, shift_mean=False), torch.tensor([[1.0, 0], [3, 0]]))
    close(masked_scale(values, mask), torch.tensor([[0.0, 0], [2, 0]]))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.floats(-5, 5), st.floats(0.1, 9), st.integers(0, 999))
def test_whitened_values_have_mean_0_and_deviation_1(n, mean, std, seed):
    """A sign error in the shift gives twice the mean instead of 0."""
    values = mean + std * torch.randn(n, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(n) != n // 2 if n > 2 else torch.ones(n)
    kept, scaled = values[mask.bool()], masked_scale(values, mask)[mask.bool()]
    white = masked_whiten(values, mask)[mask.bool()]
    unmoved = masked_whiten(values, mask, shift_mean=False)[mask.bool()]
    assert white.mean().item() == pytest.approx(0, abs=1e-3)
    assert unmoved.mean().item() == pytest.approx(kept.mean().item(), abs=1e-3)
    for result in (white, unmoved, scaled):
        assert result.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(scaled * kept.std(correction=0), kept, atol=1e-3, rtol=1e-3)


def test_equal_values_are_whitened_to_zero():
    """Their deviation is 0 up to rounding, and noise must not be blown up."""
    values = torch.full((7,), 0.1 + 0.2)
    assert masked_whiten(values, torch.ones(7)).abs().max() < 1e-2


@pytest.mark.parametrize("kept", [0, 1])
def test_whitening_needs_two_values(kept):
    mask = torch.arange(3) < kept
    for function in (masked_var, masked_whiten, masked_scale):
        with pytest.raises(ValueError, match=f"keeps {kept} of 3 values"):
            function(torch.ones(3), mask)


# --- entropy and KL -----------------------------------------------------------------------------


def test_entropy_by_hand():
    """Odds 1 : 1 : 2: H = 2 · log 4 / 4 + log 2 / 2 = 1.5 log 2 = 1.0397 nats, 1.5 bits."""
    logits = torch.tensor([[1.0, 1, 2], [5, 5, 10]]).log()
    expected = torch.full((2,), 1.5 * math.log(2))
    torch.testing.assert_close(entropy(logits), expected)
    assert entropy(logits.bfloat16()).dtype == torch.float32


def test_a_word_that_never_comes_adds_nothing_to_the_entropy_or_its_gradient():
    """0 · log 0 is NaN for a computer. H of odds 1 : 3 is .5623; its gradient by the first logit is
    -p (log p + H) = -1/4 (log 1/4 + .5623) = .2060."""
    logits = torch.tensor([0.0, math.log(3), -math.inf], requires_grad=True)
    h = entropy(logits)
    h.backward()
    assert h.item() == pytest.approx(0.5623, abs=1e-4)
    torch.testing.assert_close(logits.grad, torch.tensor([0.2060, -0.2060, 0]), atol=1e-4, rtol=0)


def test_the_three_estimators_by_hand():
    """π .4, ref .5: log(.4/.5) = -.2231, half its square .0249, 1.25 - 1 - .2231 = .0269. With the
    ratio the wrong way round k3 is .8 - 1 + .2231 = .0231."""
    p, ref = torch.tensor([0.4]).log(), torch.tensor([0.5]).log()
    found = [k(p, ref).item() for k in (kl_k1, kl_k2, kl_k3)]
    assert found == pytest.approx([-0.2231, 0.0249, 0.0269], abs=1e-4)
    assert kl_k3(ref, p).item() == pytest.approx(0.0231, abs=1e-4)


def test_k1_and_k3_are_right_in_the_mean_and_k2_is_not():
    """π = (.9, .1), ref = (.2, .8): KL = .9 log 4.5 + .1 log .125 = 1.1458. The mean of k2 is
    .45 · 1.5041² + .05 · 2.0794² = 1.2342."""
    p, ref = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])
    means = [(p * k(p.log(), ref.log())).sum().item() for k in (kl_k1, kl_k2, kl_k3)]
    assert means == pytest.approx([1.1458, 1.2342, 1.1458], abs=1e-4)


def test_gradients_of_the_estimators():
    """By log p of a token, with p .4 and ref .5: k1 gives 1, k2 the log-ratio -.2231, k3 1 - r =
    1 - 1.25. The mean of k1's over the policy is Σ p ∇ log p = 0, which is not the KL's gradient:
    taken as a loss, k1 teaches nothing; k2's mean is the KL's gradient."""
    for k, expected in ((kl_k1, 1.0), (kl_k2, -0.2231), (kl_k3, -0.25)):
        logprobs = torch.tensor([0.4]).log().requires_grad_()
        k(logprobs, torch.tensor([0.5]).log()).sum().backward()
        assert logprobs.grad.item() == pytest.approx(expected, abs=1e-4)
    logits = torch.tensor([0.3, -0.2, 1.0], requires_grad=True)
    ref = torch.tensor([0.0, 0.5, 0.1]).log_softmax(0)
    p = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((p.exp() * (p - ref)).sum(), logits, retain_graph=True)
    weights = p.exp().detach()
    by_k1, by_k2 = (torch.autograd.grad((weights * k(p, ref)).sum(), logits, retain_graph=True)[0]
                    for k in (kl_k1, kl_k2))  # fmt: skip
    torch.testing.assert_close(by_k1, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(by_k2, exact, atol=1e-6, rtol=0)
    assert exact.abs().max() > 0.1
