"""Sums of two to six numbers and word problems, with direct answers and with worked steps.

Every intermediate and final result lies between 0 and ``MAX_VALUE``. A held-out problem, and any
problem one of whose *steps* is a held-out sum of two numbers, never occurs in the corpus.
Simplified away: multiplication, division, brackets, negative numbers.
"""

import random
from dataclasses import dataclass

from course_lib.world.heldout import is_held_out

MAX_VALUE = 60
TRIGGER = "Let's think step by step."
"""The sentence that makes the base model write its steps (Kojima et al., 2022)."""


@dataclass(frozen=True)
class Problem:
    """``start`` followed by signed changes: ``Problem(12, (3, -4))`` is 12 + 3 - 4."""

    start: int
    changes: tuple[int, ...]

    @property
    def operands(self) -> int:
        return 1 + len(self.changes)

    @property
    def answer(self) -> int:
        return self.start + sum(self.changes)

    @property
    def expression(self) -> str:
        """E.g. ``"12 + 3 - 4"``."""
        return str(self.start) + "".join(f" {'+-'[c < 0]} {abs(c)}" for c in self.changes)

    @property
    def steps(self) -> str:
        """E.g. ``"12 + 3 = 15. 15 - 4 = 11."``."""
        return " ".join(f"{p.expression} = {p.answer}." for p in self.pairs())

    def pairs(self) -> list["Problem"]:
        """The sums of two numbers that the steps compute, in order."""
        value, result = self.start, []
        for change in self.changes:
            result.append(Problem(value, (change,)))
            value += change
        return result


def is_held_out_problem(problem: Problem) -> bool:
    """Whether the problem itself is kept out of the corpus."""
    return is_held_out("problem", problem.expression)


def draw_problem(rng: random.Random, operands: int, held_out: bool = False) -> Problem:
    """A problem whose values stay in 0..MAX_VALUE; its steps are never held out.

    Args:
        operands: how many numbers, at least 2.
        held_out: draw one that the corpus never shows (its steps, where more than one, are shown).
    """
    while True:
        value = start = rng.randint(2, 25)
        changes = []
        for _ in range(operands - 1):
            sizes = [c for c in range(-12, 13) if c and 0 <= value + c <= MAX_VALUE]
            changes.append(rng.choice(sizes))
            value += changes[-1]
        problem = Problem(start, tuple(changes))
        if is_held_out_problem(problem) != held_out:
            continue
        if operands > 2 and any(is_held_out_problem(p) for p in problem.pairs()):
            continue
        return problem


GAINS = (
    "finds {c} more", "buys {c} more", "gets {c} from {o}", "picks {c} more", "wins {c} more",
    "is given {c} by {o}",
)  # fmt: skip
LOSSES = (
    "gives {c} to {o}", "loses {c}", "sells {c}", "eats {c}", "throws {c} away", "drops {c}",
)  # fmt: skip
THINGS = ("apples", "pears", "plums", "nuts", "lemons", "cherries", "eggs", "cakes", "figs",
          "berries", "peaches", "carrots")  # fmt: skip


def word_problem(problem: Problem, name: str, pronoun: str, others: list[str],
                 rng: random.Random) -> str:  # fmt: skip
    """A story whose question has ``problem``'s answer.

    E.g. "Mia has 12 apples. She finds 3 more. She gives 4 to Tom. How many apples does Mia have?"
    """
    thing = rng.choice(THINGS)
    sentences = [f"{name} has {problem.start} {thing}."]
    for change in problem.changes:
        verb = rng.choice(GAINS if change > 0 else LOSSES)
        sentences.append(
            f"{pronoun.capitalize()} {verb.format(c=abs(change), o=rng.choice(others))}."
        )
    sentences.append(f"How many {thing} does {name} have?")
    return " ".join(sentences)
