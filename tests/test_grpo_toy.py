"""GRPO where all responses can be counted: the KL in the reward leads to the exact optimum."""

import copy

import pytest
import torch
from toy_policy import ALL, END, LENGTH, PROMPT, reference

from course_lib.enumeration import exact_optimum, kl_divergence, policy_distribution
from course_lib.grpo import GRPOSettings, grpo_loss
from course_lib.grpo_rollouts import GRPORollouts
from course_lib.training import train


def tune(seed: int, change=lambda batch: batch, steps: int = 240, **changes):
    """60 rollouts of eight groups of 32 responses; the score of each response is random, in
    [0, 1].

    Returns:
        The policy's distribution, the reference's, the scores.
    """
    ref, g = reference(seed), torch.Generator().manual_seed(seed + 100)
    table = {tuple(row): score for row, score in zip(ALL, torch.rand(31, generator=g).tolist())}
    given = GRPOSettings(**{"max_new_tokens": LENGTH, "minibatch_size": 256, "group_size": 32,
                            "epochs": 4, "std": None, **changes})  # fmt: skip
    model = copy.deepcopy(ref)
    stream = GRPORollouts(
        model, [PROMPT], lambda _, rows: torch.tensor([table[tuple(row)] for row in rows]),
        given, groups=8, eos_token_id=END, generator=g, ref_policy=ref,
    )  # fmt: skip

    class Changed:
        live = True

        def __iter__(self):
            return (change(batch) for batch in stream)

    train(model, Changed(), grpo_loss(given), max_steps=steps, lr=3e-3, progress=False)
    return (policy_distribution(model, PROMPT, ALL), policy_distribution(ref, PROMPT, ALL),
            torch.tensor(list(table.values())))  # fmt: skip


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_with_the_kl_in_the_reward_it_ends_at_the_exact_optimum(seed, beta):
    """KL(π ‖ π*) < .01, where the reference is .03 to .2 away from π*; and π is five times as near
    to it as to the optimum of twice the weight, or of a uniform reference. There all net scores of
    a group are equal, so it makes no difference what a response's length divides: per sequence here
    (responses have one or two tokens), the others below."""
    probs, ref, scores = tune(seed, kl_coef=beta)
    best = exact_optimum(ref, scores, beta)
    near = kl_divergence(probs, best)
    assert near < 0.01 < 0.03 < kl_divergence(ref, best)
    others = (exact_optimum(ref, scores, 2 * beta),
              exact_optimum(torch.full_like(ref, 1 / 31), scores, beta))  # fmt: skip
    assert min(kl_divergence(probs, other) for other in others) > 5 * near


@pytest.mark.parametrize(
    "changes", [{"std": "population"}, {"normalise": "token"}, {"normalise": "constant"}]
)
def test_neither_the_deviation_nor_the_length_moves_that_optimum(changes):
    probs, ref, scores = tune(0, kl_coef=0.5, **changes)
    assert kl_divergence(probs, exact_optimum(ref, scores, 0.5)) < 0.01


def test_what_must_be_right_for_that():
    """A wrong sign of the advantages, and k1 in the loss instead of the reward, which teaches
    nothing, so that the reward alone is followed: far from the optimum, both."""
    for changes in ({"kl_coef": 0.5, "change": lambda b: b | {"advantages": -b["advantages"]}},
                    {"kl_loss_coef": 0.5, "kl_estimator": "k1"}):  # fmt: skip
        probs, ref, scores = tune(0, **changes)
        assert kl_divergence(probs, exact_optimum(ref, scores, 0.5)) > 0.2


def test_k3_in_the_loss_ends_elsewhere():
    """Its gradient is that of KL(π_ref ‖ π). On one token the fixed point has a closed form: r(y) -
    E[r] = β (1 - p_ref / p), so p(y) = p_ref(y) β / (β + m - r(y)) for the m at which it adds up to
    1. The policy over the first tokens goes there, and not to the optimum of the KL."""
    ref, g = reference(0), torch.Generator().manual_seed(100)
    score, beta = torch.rand(6, generator=g).double() * 3, 0.5
    given = GRPOSettings(max_new_tokens=1, minibatch_size=256, group_size=256, std=None, epochs=2,
                         kl_loss_coef=beta)  # fmt: skip
    model = copy.deepcopy(ref)
    stream = GRPORollouts(
        model, [PROMPT], lambda _, rows: torch.stack([score[row[0]] for row in rows]), given,
        groups=1, eos_token_id=END, generator=g, ref_policy=ref,
    )  # fmt: skip
    train(model, stream, grpo_loss(given), max_steps=300, lr=3e-3, progress=False)
    words = [[i] for i in range(6)]
    p, p_ref = (policy_distribution(m, PROMPT, words) for m in (model, ref))
    low, high = float(score.max()) - beta, float(score.max()) + beta  # where the mean reward lies
    for _ in range(60):
        mean = (low + high) / 2
        total = (p_ref * beta / (beta + mean - score)).sum()
        low, high = (mean, high) if total > 1 or total < 0 else (low, mean)
    there = p_ref * beta / (beta + mean - score)
    assert there.sum().item() == pytest.approx(1, abs=1e-6) and (there > 0).all()
    elsewhere = kl_divergence(p, exact_optimum(p_ref, score, beta))
    assert kl_divergence(p, there) < 0.005 < 0.03 < elsewhere
