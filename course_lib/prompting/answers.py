"""Votes over sampled chains of thought, and predictions graded against the right answers.

Simplified away: weighting the votes by the chains' probabilities, which does about as well as
counting them (Wang et al., 2023, table 1).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from course_lib.completion import Interval, Model, complete, parse_answer, wilson


@dataclass(frozen=True)
class Vote:
    """What most of the sampled chains answer: share counts it among all of ``answers``."""

    answer: str
    share: float
    answers: tuple[str, ...]


def majority(answers: Iterable[str]) -> Vote:
    """The answer given most often; of equals the one given first.

    Chains without an answer ("") do not vote, unless there are only such.

    Raises:
        ValueError: no answers.
    """
    answers = tuple(answers)
    if not answers:
        raise ValueError("There are no answers to vote on: sample at least one.")
    counts = Counter(a for a in answers if a) or Counter(answers)
    winner, votes = counts.most_common(1)[0]  # equals stand in the order of their first vote
    return Vote(winner, votes / len(answers), answers)


def self_consistency(
    model: Model,
    tokenizer,
    prompts: Sequence[str],
    samples: int,
    max_new_tokens: int,
    *,
    generator: torch.Generator | None,
    temperature: float = 0.7,
    parse: Callable[[str], str] = parse_answer,
    **settings,
) -> list[Vote]:
    """Sample several chains of thought a prompt and let their answers vote (Wang et al., 2023).

    The accuracy against the number of samples needs one call: ``majority(vote.answers[:n])``.

    Args:
        generator: draws the tokens. A function from text to text draws for itself: None.
        parse: from a completion to its answer, "" where it has none.
        settings: see ``complete``.

    Raises:
        ValueError: no samples, or a temperature of 0, at which all chains are the same.
    """
    if samples < 1 or temperature <= 0:
        raise ValueError(
            f"samples={samples} must be at least 1 and temperature={temperature} above 0: chains "
            "vote only where they can differ."
        )
    repeated = [p for p in prompts for _ in range(samples)]
    completions = complete(model, tokenizer, repeated, max_new_tokens, generator=generator,
                           temperature=temperature, **settings)  # fmt: skip
    answers = [parse(c) for c in completions]
    return [majority(answers[i : i + samples]) for i in range(0, len(answers), samples)]


@dataclass(frozen=True)
class Result:
    """Predictions beside the right answers."""

    predictions: tuple[str, ...]
    hits: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.hits) / len(self.hits)

    @property
    def interval(self) -> Interval:
        """The accuracy's 95 % interval; its items count as drawn independently."""
        return wilson(self.accuracy, len(self.hits))

    def __str__(self) -> str:
        """E.g. ``0.750 (95 %: 0.301 to 0.954, n = 4)``."""
        low, high = self.interval.low, self.interval.high
        return f"{self.accuracy:.3f} (95 %: {low:.3f} to {high:.3f}, n = {len(self.hits)})"


def grade(predictions: Sequence[str], answers: Sequence[str]) -> Result:
    """Exact match, letter by letter.

    Raises:
        ValueError: no predictions, or not one for each answer.
    """
    if not predictions or len(predictions) != len(answers):
        raise ValueError(
            f"{len(predictions)} predictions for {len(answers)} answers: give one for each, and "
            "at least one."
        )
    return Result(tuple(predictions), tuple(p == a for p, a in zip(predictions, answers)))


def evaluate(
    model: Model,
    tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    max_new_tokens: int = 64,
    *,
    parse: Callable[[str], str] = parse_answer,
    progress: bool = True,
    **settings,
) -> Result:
    """Complete the prompts, parse and grade: greedy unless ``settings`` of ``complete`` differ."""
    if not prompts or len(prompts) != len(answers):
        raise ValueError(
            f"{len(prompts)} prompts for {len(answers)} answers: give one for each, and at least "
            "one."
        )
    completions = complete(model, tokenizer, prompts, max_new_tokens, progress=progress,
                           **settings)  # fmt: skip
    return grade([parse(c) for c in completions], answers)
