"""Votes over sampled chains of thought, and predictions graded against the right answers.

What is drawn anew (items, examples, orders) is graded on several seeds: ``evaluate_seeds``.

Simplified away: weighting the votes by the chains' probabilities, which does about as well as
counting them (Wang et al., 2023, table 1).
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from course_lib.completion import Model, complete
from course_lib.measuring import Interval, Result, grade, parse_answer


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


@dataclass(frozen=True)
class SeedResults:
    """One result a seed, all of the same number of items."""

    results: tuple[Result, ...]

    @property
    def pooled(self) -> Result:
        """All items as one result: its accuracy is the mean over the seeds."""
        return Result(
            tuple(p for r in self.results for p in r.predictions),
            tuple(h for r in self.results for h in r.hits),
        )

    @property
    def accuracy(self) -> float:
        return self.pooled.accuracy

    @property
    def interval(self) -> Interval:
        return self.pooled.interval

    @property
    def least(self) -> float:
        return min(r.accuracy for r in self.results)

    @property
    def most(self) -> float:
        return max(r.accuracy for r in self.results)

    def __str__(self) -> str:
        """E.g. ``0.750 (95 %: 0.301 to 0.954, n = 4; seeds 0.500 to 1.000)``."""
        return f"{str(self.pooled)[:-1]}; seeds {self.least:.3f} to {self.most:.3f})"


def evaluate_seeds(
    model: Model,
    tokenizer,
    draw: Callable[[random.Random], tuple[str, str]],
    items: int,
    max_new_tokens: int = 64,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    **settings,
) -> SeedResults:
    """``evaluate`` on items drawn anew for each seed, completed together.

    Args:
        draw: (prompt, right answer) from a generator.
        items: how many a seed.
        settings: see ``evaluate``.

    Raises:
        ValueError: no items, no seeds, or a seed that comes twice.
    """
    if items < 1 or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"items={items} must be at least 1 and seeds={list(seeds)} at least one, all different."
        )
    rngs = [random.Random(seed) for seed in seeds]
    prompts, answers = zip(*(draw(rng) for rng in rngs for _ in range(items)))
    whole = evaluate(model, tokenizer, prompts, answers, max_new_tokens, **settings)
    return SeedResults(tuple(
        Result(whole.predictions[i : i + items], whole.hits[i : i + items])
        for i in range(0, len(prompts), items)
    ))  # fmt: skip
