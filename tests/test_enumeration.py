"""A policy small enough to count: all responses, their probabilities, and the exact optimum."""

import doctest

import pytest
import torch
from toy_policy import ALL, END, LENGTH, PROMPT, reference

from course_lib import enumeration
from course_lib.enumeration import (
    completions,
    exact_optimum,
    kl_divergence,
    objective,
    policy_distribution,
)
from course_lib.rollout import responses, rollout


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(enumeration)
    assert result.attempted >= 2 and not result.failed


def test_all_completions_are_counted_once():
    """V 6, two tokens, one of them ends: [0]; five times [a, 0]; 25 [a, b] that are cut off: 31.
    Three of V 4: 1 + 3 + 9 that end + 27 = 40."""
    assert len(ALL) == 31 == len(set(map(tuple, ALL)))
    assert sum(row[-1] == END for row in ALL) == 6
    longer = completions(4, 3, 3)
    assert len(longer) == 40 and sum(row[-1] == 3 for row in longer) == 13
    assert all(3 not in row[:-1] for row in longer)


def test_the_probabilities_are_those_of_sampling():
    """They add up to 1, and 20,000 samples have these shares within .02 in all (the expected
    total-variation distance is below .5 · √(31/20,000) = .0197; four deviations above: .03)."""
    model = reference(0)
    probs = policy_distribution(model, PROMPT, ALL)
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    batch = rollout(model, [PROMPT] * 20_000, max_new_tokens=LENGTH, eos_token_id=END,
                    generator=torch.Generator().manual_seed(0))  # fmt: skip
    counts = torch.zeros(len(ALL))
    index = {tuple(row): i for i, row in enumerate(ALL)}
    for row in responses(batch):
        counts[index[tuple(row)]] += 1
    assert 0.5 * (counts / 20_000 - probs).abs().sum() < 0.03
    assert probs.max() / probs.min() > 5  # not uniform


def test_the_optimum_by_hand():
    """Reference .5 .25 .25, scores 0 log 2 log 4, β 1: weights .5 .5 1, so .25 .25 .5. At β .5 the
    scores count double: .5 1 4 of 5.5. The value is β log Z = log 2 and .5 log 5.5."""
    ref, scores = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([1.0, 2, 4]).log()
    best = exact_optimum(ref, scores, 1.0)
    torch.testing.assert_close(best, torch.tensor([0.25, 0.25, 0.5]))
    assert objective(best, ref, scores, 1.0) == pytest.approx(torch.tensor(2.0).log().item())
    sharper = exact_optimum(ref, scores, 0.5)
    torch.testing.assert_close(sharper, torch.tensor([0.5, 1, 4]) / 5.5)
    assert objective(sharper, ref, scores, 0.5) == pytest.approx(0.8524, abs=1e-4)


def test_kl_by_hand():
    """(1, 0) against (.25, .75): log 4. (.5, .5): .5 log 2 - .5 log 1.5 = .1438."""
    q = torch.tensor([0.25, 0.75])
    assert kl_divergence(torch.tensor([1.0, 0.0]), q) == pytest.approx(1.3863, abs=1e-4)
    assert kl_divergence(torch.tensor([0.5, 0.5]), q) == pytest.approx(0.1438, abs=1e-4)


@pytest.mark.parametrize("beta", [1.0, 0.2])
def test_whatever_moves_away_from_the_optimum_loses(beta):
    """200 random distributions, near and far: each has a lower E[r] - β KL, by β KL(π ‖ π*)."""
    g = torch.Generator().manual_seed(0)
    ref = torch.randn(31, generator=g, dtype=torch.float64).softmax(0)
    scores = torch.randn(31, generator=g, dtype=torch.float64)
    best = exact_optimum(ref, scores, beta)
    top = objective(best, ref, scores, beta)
    for size in (0.01, 0.1, 1.0, 5.0):
        for _ in range(50):
            moved = best.log() + size * torch.randn(31, generator=g, dtype=torch.float64)
            loss = top - objective(moved.softmax(0), ref, scores, beta)
            assert loss > 0
            assert loss == pytest.approx(beta * kl_divergence(moved.softmax(0), best), rel=1e-6)


def test_what_cannot_be_enumerated_is_refused():
    with pytest.raises(ValueError, match="too many to enumerate"):
        completions(2048, 3, 0)
    with pytest.raises(ValueError, match="eos_token_id=4 must be one of 0..3"):
        completions(4, 2, 4)
    with pytest.raises(ValueError, match="above 0, got 0"):
        exact_optimum(torch.ones(2) / 2, torch.zeros(2), 0)
