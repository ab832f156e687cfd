"""A policy small enough to enumerate: all responses, their probabilities, and the exact optimum.

What PPO, DPO and GRPO look for has a closed form: E[r] - β KL(π ‖ π_ref) is largest for
π*(y | x) = π_ref(y | x) exp(r(x, y) / β) / Z(x) (Rafailov et al., 2023, equation 4). Where all
responses can be listed, what an algorithm found is compared with it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from course_lib.rollout import response_logps


def completions(vocab_size: int, max_new_tokens: int, eos_token_id: int) -> list[list[int]]:
    """All responses: those that end, and those that are cut off after ``max_new_tokens``.

    Raises:
        ValueError: more than 100,000 of them, an end token outside the vocabulary.

    Example: two tokens, of which 0 ends, and at most two of them.
        >>> completions(2, 2, eos_token_id=0)
        [[0], [1, 0], [1, 1]]
    """
    if not 0 <= eos_token_id < vocab_size or max_new_tokens < 1:
        raise ValueError(
            f"eos_token_id={eos_token_id} must be one of 0..{vocab_size - 1}, and max_new_tokens="
            f"{max_new_tokens} at least 1."
        )
    others = vocab_size - 1
    count = sum(others**k for k in range(max_new_tokens)) + others**max_new_tokens
    if count > 100_000:
        raise ValueError(f"{count} completions are too many to enumerate: take fewer tokens.")
    done: list[list[int]] = []
    open_ones: list[list[int]] = [[]]
    for _ in range(max_new_tokens):
        longer = [[*row, token] for row in open_ones for token in range(vocab_size)]
        done += [row for row in longer if row[-1] == eos_token_id]
        open_ones = [row for row in longer if row[-1] != eos_token_id]
    return done + open_ones


def policy_distribution(
    model: nn.Module, prompt: Sequence[int], responses: Sequence[Sequence[int]]
) -> Tensor:
    """π(y | x) of each response, (N,), in double precision; over all ``completions`` they add up
    to 1.

    Args:
        model: follows transformers' calling convention.
    """
    return response_logps(model, [prompt] * len(responses), responses).double().exp()


def exact_optimum(ref_probs: Tensor, scores: Tensor, beta: float) -> Tensor:
    """π* = π_ref exp(r / β) / Z, the distribution at which ``objective`` is largest.

    Args:
        ref_probs: (N,), the reference's probability of each response.
        scores: (N,), r.
        beta: the KL's weight, above 0; PPO's ``kl_coef``.

    Returns:
        (N,).

    Raises:
        ValueError: shapes that differ, a beta that is not above 0.

    Example: a score of log 3 triples the odds of the second response.
        >>> exact_optimum(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 3.0]).log1p(), 1.0)
        tensor([0.2000, 0.8000])
    """
    if ref_probs.shape != scores.shape or not beta > 0:
        raise ValueError(
            f"ref_probs {tuple(ref_probs.shape)} and scores {tuple(scores.shape)} must have one "
            f"shape, and beta must be above 0, got {beta}."
        )
    return (ref_probs.log() + scores.to(ref_probs) / beta).softmax(0)


def kl_divergence(p: Tensor, q: Tensor) -> float:
    """KL(p ‖ q) = Σ p log p / q of two distributions, (N,), in nats; 0 · log 0 is 0."""
    return float(torch.where(p > 0, p * (p.log() - q.log()), torch.zeros_like(p)).sum())


def objective(probs: Tensor, ref_probs: Tensor, scores: Tensor, beta: float) -> float:
    """E[r] - β KL(π ‖ π_ref), exactly.

    Args:
        probs, ref_probs, scores: (N,).
    """
    return float((probs * scores.to(probs)).sum()) - beta * kl_divergence(probs, ref_probs)
