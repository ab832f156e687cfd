"""Verifiers: programs that say whether a response to a sum is right, from its text alone.

With worked steps a response reads "12 + 3 = 15. 15 - 4 = 11. The answer is 11." A verifier gives a
score in 0..1; what it does not look at it cannot reward, and what it looks at carelessly it rewards
all the same. ``number_anywhere`` is careless on purpose: a response that lists numbers gets its
point. Its repair is ``exact_answer``.
Simplified away: answers that are equal and written otherwise ("011", "11.0", "eleven") are wrong,
as they are everywhere in the micro-world.
"""

import re
from collections.abc import Callable

from course_lib.measuring import ANSWER_MARK, parse_answer
from course_lib.world.arithmetic import Problem

Verifier = Callable[[Problem, str], float]
"""A problem, and the text of a response without its end token -> a score."""

EXPRESSION = re.compile(r"(?<![\d+-])(?<![+-] )[0-9]+(?: [+-] [0-9]+)+")
STEP = r"[0-9]+ [+-] [0-9]+ = [0-9]+\."
FORMAT = re.compile(rf"(?:{STEP} )+{ANSWER_MARK} [0-9]+\.")


def read_problem(text: str) -> Problem:
    """The sum in a prompt; of several, after examples, the last one.

    Raises:
        ValueError: there is none.

    Example:
        >>> read_problem("Q: 12 + 3 - 4\\nA:")
        Problem(start=12, changes=(3, -4))
    """
    found = EXPRESSION.findall(text)
    if not found:
        raise ValueError(
            f"There is no sum in {text!r}: expected numbers joined by ' + ' or ' - ', as in "
            "Problem.expression."
        )
    start, *rest = found[-1].split()
    signs, sizes = rest[::2], rest[1::2]
    return Problem(int(start), tuple(int(sign + size) for sign, size in zip(signs, sizes)))


def exact_answer(problem: Problem, text: str) -> float:
    """1 if what follows the last "The answer is" is the answer, letter by letter, else 0.

    Without these words the whole first line must be. Steps are not looked at: a right answer behind
    wrong steps, or behind none, has its point.

    Example:
        >>> problem = Problem(12, (3,))
        >>> exact_answer(problem, " 12 + 3 = 15. The answer is 15.")
        1.0
        >>> exact_answer(problem, " 15 16")
        0.0
    """
    return float(parse_answer(text, stop=None) == str(problem.answer))


def step_format(problem: Problem, text: str) -> float:
    """1 if the text is steps and an answer in the form of the module's example, else 0.

    Numbers are not looked at: "1 + 1 = 3. The answer is 7." has its point.
    """
    return float(FORMAT.fullmatch(text.strip()) is not None)


def answer_and_format(problem: Problem, text: str) -> float:
    """1 if both hold, else 0."""
    return exact_answer(problem, text) * step_format(problem, text)


def sound_steps(problem: Problem, text: str) -> float:
    """1 if every step is there and right, and the answer behind them, else 0.

    To measure with: whether the steps lead to the answer, or stand there for show.
    """
    return float(text.strip() == f"{problem.steps} {ANSWER_MARK} {problem.answer}.")


def number_anywhere(problem: Problem, text: str) -> float:
    """1 if the right number stands anywhere in the text, else 0: careless, and easily cheated.

    Example: its digits may even be part of another number.
        >>> number_anywhere(Problem(12, (3,)), " 13 14 15 16"), number_anywhere(
        ...     Problem(1, (1,)), " The answer is 123.")
        (1.0, 1.0)
    """
    return float(str(problem.answer) in text)


VERIFIERS: dict[str, Verifier] = {
    "exact answer": exact_answer, "format": step_format, "both": answer_and_format,
    "sloppy": number_anywhere,
}  # fmt: skip
