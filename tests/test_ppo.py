"""PPO's mathematics: numbers derived by hand, and slow loops beside the fast ones."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from course_lib import ppo
from course_lib.ppo import (
    PPOSettings,
    gae,
    missing_eos_penalty,
    per_token_rewards,
    policy_loss,
    value_loss,
)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(ppo)
    assert result.attempted >= 8 and not result.failed


# --- rewards ------------------------------------------------------------------------------------


def test_the_score_counts_at_the_last_token_of_the_response():
    """t0 t1 eos pad, score 1: at index 2, so that the masked sum is 1. At index 3 it would be 0."""
    mask = row(1, 1, 1, 0).bool()
    rewards = per_token_rewards(torch.ones(1), torch.zeros(1, 4), torch.zeros(1, 4), mask, 0.1)
    assert rewards.tolist() == [[0, 0, 1, 0]]
    assert rewards[mask].sum() == 1


def test_each_token_pays_its_own_kl():
    """Log-ratios .5, -1, 2 in the response, 7 in front and NaN behind; kl_coef .2, score 3:
    -.1, .2, -.4 + 3. A response that is a single token gets both at one place."""
    ratios = torch.tensor([[7, 0.5, -1, 2, math.nan], [7, 7, 7, 7, 0.5]])
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 0, 0, 1]])
    rewards = per_token_rewards(torch.tensor([3.0, 1]), ratios, torch.zeros(2, 5), mask, 0.2)
    assert_close(rewards, torch.tensor([[0, -0.1, 0.2, 2.6, 0], [0, 0, 0, 0, 0.9]]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_by_row(value):
    scores, zeros = torch.tensor([1.0, value, 2.0, value]), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"rows \[1, 3\] are not finite"):
        per_token_rewards(scores, zeros, zeros, torch.ones(4, 2), 0.1)


def test_rewards_refuse_what_does_not_fit():
    zeros, mask = torch.zeros(3, 2), torch.tensor([[1, 1], [0, 0], [0, 1]])
    with pytest.raises(ValueError, match=r"Rows \[1\] have no response token"):
        per_token_rewards(torch.zeros(3), zeros, zeros, mask, 0.1)
    with pytest.raises(ValueError, match=r"tensor \(3,\).*got \(3, 1\)"):
        per_token_rewards(torch.zeros(3, 1), zeros, zeros, torch.ones(3, 2), 0.1)
    with pytest.raises(ValueError, match=r"ref_logprobs \(3, 1\)"):
        per_token_rewards(torch.zeros(3), zeros, zeros[:, :1], mask, 0.1)


def test_a_response_that_was_cut_off_is_punished_in_either_way():
    """Scores 2 and 3, the second cut off, penalty 1: taken off 2, 2; replaced 2, -1."""
    scores, ended = torch.tensor([2.0, 3.0]), torch.tensor([True, False])
    assert missing_eos_penalty(scores, ended, 1.0).tolist() == [2, 2]
    assert missing_eos_penalty(scores, ended, 1.0, replace=True).tolist() == [2, -1]
    with pytest.raises(ValueError, match=r"ended \(2, 1\)"):
        missing_eos_penalty(scores, ended[:, None], 1.0)


# --- advantages ---------------------------------------------------------------------------------


def test_the_critics_value_on_padding_never_bootstraps():
    """r 0 1 0, V 0 0 10, mask 1 1 0, γ 1, λ .95: A₁ = 1, A₀ = .95. With the 10 bootstrapped into
    A₁ it is 11; the same with a mask of the rewards alone, and returns of 10 on padding."""
    advantages, returns = gae(row(0.0, 1, 0), row(0.0, 0, 10), row(1, 1, 0))
    assert_close(advantages, row(0.95, 1, 0))
    assert_close(returns, row(0.95, 1, 0))
    bad = gae(row(0.0, 1, math.nan), row(0.0, 0, math.inf), row(1, 1, 0))
    assert_close(bad[0], advantages)


def test_advantages_by_hand():
    """r 1 2, V 3 5, γ .5, λ .5. δ₁ = 2 - 5 = -3; δ₀ = 1 + .5 · 5 - 3 = .5; A₀ = .5 - .25 · 3 =
    -.25. Returns: 2.75 and 2."""
    advantages, returns = gae(row(1.0, 2), row(3.0, 5), torch.ones(1, 2), 0.5, 0.5)
    assert_close(advantages, row(-0.25, -3))
    assert_close(returns, row(2.75, 2))


def slow_gae(rewards, values, gamma, gae_lambda) -> list[float]:
    """A_t = Σ_l (γλ)^l δ_{t+l} of one response, term by term (Schulman et al., 2016, equation 16);
    lists without padding."""
    n = len(rewards)
    values = [*values, 0.0]
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(n)]
    return [sum((gamma * gae_lambda) ** (s - t) * deltas[s] for s in range(t, n)) for t in range(n)]


@st.composite
def masked_rows(draw):
    """Rewards, values and a mask of rows padded at either end; some rows are empty."""
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    mask = torch.zeros(B, T, dtype=torch.bool)
    for one in mask:
        start = draw(st.integers(0, T))
        one[start : draw(st.integers(start, T))] = True
    return torch.randn(B, T, generator=g), torch.randn(B, T, generator=g), mask


@settings(max_examples=80, deadline=None, derandomize=True)
@given(masked_rows(), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_those_of_the_slow_sums(rows, gamma, gae_lambda):
    rewards, values, mask = rows
    advantages, returns = gae(rewards, values, mask, gamma, gae_lambda)
    for i, keep in enumerate(mask):
        slow = slow_gae(rewards[i, keep].tolist(), values[i, keep].tolist(), gamma, gae_lambda)
        assert_close(advantages[i, keep], torch.tensor(slow), atol=1e-5, rtol=1e-5)
        assert_close(returns[i, keep], advantages[i, keep] + values[i, keep])
    assert not advantages[~mask].any() and not returns[~mask].any()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(masked_rows(), st.integers(0, 99))
def test_rewards_are_those_of_the_slow_loop(rows, seed):
    logprobs, ref_logprobs, mask = rows
    mask[:, -1] |= ~mask.any(1)
    scores = torch.randn(len(mask), generator=torch.Generator().manual_seed(seed))
    rewards = per_token_rewards(scores, logprobs, ref_logprobs, mask, 0.3)
    for i in range(len(mask)):
        slow = [0.0] * mask.shape[1]
        for t in range(mask.shape[1]):
            if mask[i, t]:
                slow[t] = -0.3 * (logprobs[i, t].item() - ref_logprobs[i, t].item())
        slow[max(t for t in range(mask.shape[1]) if mask[i, t])] += scores[i].item()
        assert_close(rewards[i], torch.tensor(slow), atol=1e-5, rtol=1e-5)


def test_lambda_1_is_the_return_and_lambda_0_one_step():
    """r 1 2 3, V 1 1 1, γ 1. λ 1: 6 - 1, 5 - 1, 3 - 1. λ 0: 1 + 1 - 1, 2 + 1 - 1, 3 - 1."""
    rewards, values = row(1.0, 2, 3), torch.ones(1, 3)
    assert gae(rewards, values, torch.ones(1, 3), 1.0, 1.0)[0].tolist() == [[5, 4, 2]]
    assert gae(rewards, values, torch.ones(1, 3), 1.0, 0.0)[0].tolist() == [[1, 2, 2]]


def test_a_mask_with_a_hole_is_refused():
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    with pytest.raises(ValueError, match=r"hole in rows \[1\]"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), mask)
    with pytest.raises(ValueError, match=r"values \(2, 1\)"):
        gae(torch.zeros(2, 3), torch.zeros(2, 1), mask)


# --- losses -------------------------------------------------------------------------------------


def test_the_clipped_policy_loss_by_hand():
    """ε .2. Ratio 1.5, A -1: max(1.5, 1.2) = 1.5 (the sign turned: -1.5; clipped only: 1.2).
    Ratio 1.5, A 1: max(-1.5, -1.2) = -1.2. Ratio .5, A 1: -.5. Ratio .5, A -1: max(.5, .8) = .8."""
    logprobs = row(1.5, 1.5, 0.5, 0.5).log()
    advantages = row(-1.0, 1, 1, -1)
    loss = policy_loss(logprobs - 2, torch.full((1, 4), -2.0), advantages)
    assert_close(loss, row(1.5, -1.2, -0.5, 0.8))
    assert_close(
        policy_loss(logprobs, torch.zeros(1, 4), advantages, None), row(1.5, -1.5, -0.5, 0.5)
    )


def test_clipping_stops_the_gradient_where_nothing_is_to_be_gained():
    """d(-ratio · A)/d log p = -ratio · A: 1.5 for A -1, 0 for A 1 (clipped); -.5 and 0 below."""
    logprobs = row(1.5, 1.5, 0.5, 0.5).log().requires_grad_()
    policy_loss(logprobs, torch.zeros(1, 4), row(-1.0, 1, 1, -1)).sum().backward()
    assert_close(logprobs.grad, row(1.5, 0, -0.5, 0))


def test_the_clipped_value_loss_by_hand():
    """R 0, old 2, v 1, ε .5: v may move to 1.5, max(1, 1.5²) = 2.25; the minimum would be 1. With
    v recomputed as old: 1. v 3, R 4, old 2: max(1, 1.5²) = 2.25. v 2.2: within ε, (2.2 - 4)²."""
    values, returns = row(1.0, 3, 2.2), row(0.0, 4, 4)
    loss = value_loss(values, torch.full((1, 3), 2.0), returns, clip_eps=0.5)
    assert_close(loss, row(2.25, 2.25, 3.24))
    plain = value_loss(values, torch.full((1, 3), 2.0), returns, clip_eps=None)
    assert_close(plain, row(1.0, 1, 3.24))


def test_losses_refuse_to_broadcast():
    with pytest.raises(ValueError, match=r"advantages \(2, 1\)"):
        policy_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"returns \(2,\)"):
        value_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"gamma": 1.1}, {"gae_lambda": math.nan}, {"kl_coef": -0.1}, {"temperature": 0},
     {"clip_eps": 0.0}, {"kl_target": -1.0}, {"vf_coef": math.inf}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must"):
        PPOSettings(4, 2, **change)
