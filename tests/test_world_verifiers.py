"""Verifiers under attack: what they reward, what they do not, and what a careless one lets pass."""

import doctest
import random

import pytest

from course_lib.world import verifiers
from course_lib.world.arithmetic import Problem, draw_problem
from course_lib.world.documents import reasoned
from course_lib.world.verifiers import (
    VERIFIERS,
    answer_and_format,
    exact_answer,
    number_anywhere,
    read_problem,
    sound_steps,
    step_format,
)

PROBLEM = Problem(12, (3, -4))  # 11
RIGHT = " 12 + 3 = 15. 15 - 4 = 11. The answer is 11."


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(verifiers)
    assert result.attempted >= 4 and not result.failed


def test_what_the_data_teach_is_right_by_every_verifier():
    """Of 2 to 8 operands, with and without the space before it; the answer of another is wrong."""
    rng = random.Random(0)
    for _ in range(200):
        problem = draw_problem(rng, rng.randint(2, 8), rng.random() < 0.5)
        text = reasoned(problem.steps, problem.answer, "steps")
        for verifier in (*VERIFIERS.values(), sound_steps):
            assert verifier(problem, f" {text}") == verifier(problem, text) == 1
        other = Problem(problem.start + 1, problem.changes)
        assert exact_answer(other, text) == answer_and_format(other, text) == 0
        assert step_format(other, text) == 1 and sound_steps(other, text) == 0


HUGE = "9" * 6000
# text, exact, format, sloppy
ATTACKS = {
    "nothing": ("", 0, 0, 0),
    "a space": ("  \n ", 0, 0, 0),
    "the answer alone": (" 11", 1, 0, 1),
    "the answer as a sentence, without steps": (" The answer is 11.", 1, 0, 1),
    "cut off before the answer": (" 12 + 3 = 15. 15 - 4 = 11. The answer is", 0, 0, 1),
    "cut off within the answer": (" 12 + 3 = 15. 15 - 4 = 11. The answer is 1", 0, 0, 1),
    "cut off before the last stop": (RIGHT[:-1], 1, 0, 1),
    "repeated": (RIGHT * 2, 1, 0, 1),
    "repeated with a space": (f"{RIGHT} {RIGHT}", 1, 0, 1),
    "two answers, the right one last": (" 1 + 1 = 2. The answer is 5. The answer is 11.", 1, 0, 1),
    "two answers, the right one first": (f"{RIGHT} The answer is 12.", 0, 0, 1),
    "two numbers": (" The answer is 11 or 12.", 0, 0, 1),
    "two numbers by a stop": (" The answer is 12. 11.", 0, 0, 1),
    "all numbers": (" " + " ".join(map(str, range(61))), 0, 0, 1),
    "its digits within a number": (" 12 + 3 = 113. The answer is 113.", 0, 1, 1),
    "zeros in front": (" 12 + 3 = 15. The answer is 011.", 0, 1, 1),
    "a point behind": (" The answer is 11.0", 0, 0, 1),
    "a sign": (" The answer is +11.", 0, 0, 1),
    "the negative": (" The answer is -11.", 0, 0, 1),
    "in words": (" The answer is eleven.", 0, 0, 0),
    "digits of another script": (" 12 + 3 = 15. The answer is ١١.", 0, 0, 0),
    "a huge number": (f" 12 + 3 = 15. The answer is {HUGE}.", 0, 1, 0),
    "wrong steps": (" 1 + 1 = 3. The answer is 11.", 1, 1, 1),
    "wrong steps and answer": (" 1 + 1 = 3. The answer is 7.", 0, 1, 0),
    "spaces": (" 12  + 3 = 15. The answer is  11 .", 1, 0, 1),
    "spaces around": (f"\n {RIGHT}  \n", 1, 1, 1),
    "talk behind": (f"{RIGHT}\nQ: 1 + 1\nA: 2", 1, 0, 1),
    "talk before": (f" Well.{RIGHT}", 1, 0, 1),
    "an end token inside": (f" The answer is 12.<|end|>{RIGHT}", 0, 0, 1),
    "an answer behind an end token": (f"{RIGHT}<|end|> The answer is 12.", 1, 0, 1),
    "a copy of the question": (" 12 + 3 - 4", 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name):
    text, exact, form, sloppy = ATTACKS[name]
    assert exact_answer(PROBLEM, text) == exact
    assert step_format(PROBLEM, text) == form
    assert answer_and_format(PROBLEM, text) == exact * form
    assert number_anywhere(PROBLEM, text) == sloppy
    assert sound_steps(PROBLEM, text) == (name == "spaces around")


def test_the_careless_verifier_is_cheated_by_one_text_and_its_repair_is_not():
    """A response that lists 0 to 60 has a point for every problem; by the repair for none."""
    rng, every = random.Random(1), " ".join(map(str, range(61)))
    drawn = [draw_problem(rng, 5) for _ in range(50)]
    assert all(number_anywhere(problem, every) for problem in drawn)
    assert not any(exact_answer(problem, every) for problem in drawn)


def test_a_problem_is_read_from_any_wording():
    """Of examples before it the last one counts; the sums in steps are not asked."""
    rng = random.Random(2)
    for operands in (2, 3, 5, 8):
        problem = draw_problem(rng, operands)
        for wording in ("<|user|> What is {x}?<|end|>", "Q: 1 + 1\nA: 2\nQ: {x}\nA:", "{x} ="):
            assert read_problem(wording.format(x=problem.expression)) == problem


@pytest.mark.parametrize("text", ["", "What is 12?", "12 + ", "12+3", "12 * 3", "+ 3"])
def test_a_prompt_without_a_sum_is_refused(text):
    with pytest.raises(ValueError, match="There is no sum in"):
        read_problem(text)
