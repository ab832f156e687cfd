"""Instruction data: right pairs, many wordings, whole clusters and single items held out."""

import doctest
import random
import re
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.measuring import parse_answer
from course_lib.world import instructions, wordings
from course_lib.world.arithmetic import Problem, is_held_out_problem
from course_lib.world.facts import the_world
from course_lib.world.heldout import is_held_out
from course_lib.world.instructions import (
    CLUSTERS,
    INSTRUCTIONS,
    KIN,
    ask_for,
    draw_example,
    examples,
    split_clusters,
)
from course_lib.world.tasks import HELD_OUT_PAIRS, PLURALS, TASKS

names = st.sampled_from(sorted(INSTRUCTIONS))


def test_the_docstrings_show_what_comes_out():
    for module in (instructions, wordings):
        result = doctest.testmod(module, extraglobs={"random": random})
        assert result.attempted and not result.failed


# --- templates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", INSTRUCTIONS.values(), ids=lambda t: t.name)
def test_templates_have_one_input_and_are_all_different(task):
    every = task.templates + task.questions + task.unseen_templates
    assert all(template.count("{") == template.count("{x}") == 1 for template in every)
    assert len(set(every)) == len(every) and len(task.templates) >= 6
    assert len(task.unseen_templates) >= 2


def test_the_first_templates_are_the_plain_ones():
    """Three instructions in the first layout, then in the second; one alone is the evaluation's."""
    task = INSTRUCTIONS["opposite"]
    assert task.templates[:4] == (
        "Give the opposite of the word: {x}", "Write the opposite: {x}",
        "Name the word that means the contrary: {x}", "Give the opposite of the word. {x}",
    )  # fmt: skip
    prompts = {ask_for(task, "big", random.Random(s), "command", templates=2) for s in range(40)}
    assert prompts == {"Give the opposite of the word: big", "Write the opposite: big"}


def test_questions_begin_with_the_corpus_s_own_and_commands_hold_none():
    """``words.QUESTIONS`` asks "What is the opposite of big?"; two other questions follow it."""
    task = INSTRUCTIONS["opposite"]
    asked = [{ask_for(task, "big", random.Random(s), "question", templates=n) for s in range(60)}
             for n in (1, None)]  # fmt: skip
    assert asked[0] == {"What is the opposite of big?"} < asked[1] and len(asked[1]) == 3
    assert not {t for t in task.templates if "?" in t} and all("?" in q for q in task.questions)
    commands = {ask_for(task, "big", random.Random(s), "command") for s in range(300)}
    assert commands == {t.replace("{x}", "big") for t in task.templates}


def test_an_instruction_is_a_question_as_often_as_a_command():
    """3 questions and 24 commands: drawn from one pool, questions would be one prompt in nine."""
    task, rng = INSTRUCTIONS["opposite"], random.Random(0)
    asked = sum(ask_for(task, "big", rng).endswith("?") for _ in range(2000))
    assert abs(asked / 2000 - 0.5) < 0.04  # 3.6 standard deviations
    fact = INSTRUCTIONS["fact"]
    prompts = {ask_for(fact, "X?", random.Random(s), "question") for s in range(200)}
    assert prompts == {t.replace("{x}", "X?") for t in fact.templates}


def test_forms_leave_the_instruction_out():
    task, rng = INSTRUCTIONS["without_last"], random.Random(0)
    assert ask_for(task, "a, b", rng, "none") == "a, b"
    assert ask_for(task, "a, b", rng, "name") == "[without last] a, b"
    for wrong in ({"form": "template"}, {"templates": 0}):
        with pytest.raises(ValueError, match="form must be one of"):
            ask_for(task, "a", rng, **wrong)


def test_unseen_wordings_are_not_among_the_trained_ones():
    seen, unseen = (
        {ask_for(INSTRUCTIONS["plural"], "X", random.Random(s), unseen=flag) for s in range(900)}
        for flag in (False, True)
    )
    task = INSTRUCTIONS["plural"]
    assert len(seen) == len(task.templates + task.questions) and not seen & unseen
    assert len(unseen) == len(INSTRUCTIONS["plural"].unseen_templates)


# --- examples -----------------------------------------------------------------------------------


def test_examples_by_hand():
    """What the pieces say: an input in one of the task's templates, and the right response."""
    for example in islice(examples(1, "reverse"), 50):
        words = max(re.findall(r"\w+(?:, \w+)+", example.prompt), key=len)
        assert example.response == ", ".join(words.split(", ")[::-1]), example
    for example in islice(examples(1, "plural", form="command", templates=1), 50):
        word = example.prompt.removeprefix("Give the plural of the word: ")
        assert example.response == PLURALS[word]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(names, st.integers(0, 99), st.booleans(), st.booleans())
def test_every_example_has_an_answer_and_is_its_seeds(name, seed, held_out, unseen):
    example = next(examples(seed, name, held_out, unseen=unseen))
    assert example == next(examples(seed, name, held_out, unseen=unseen))
    assert example.task == name and example.prompt.strip() and parse_answer(example.response)
    assert "\n" not in example.response and example.response == example.response.strip()
    steps = INSTRUCTIONS[name].cluster == "reasoning"
    assert ("The answer is" in example.response) == steps


def test_streams_of_other_seeds_and_tasks_differ():
    streams = {tuple(islice(examples(s, n), 5)) for s in (0, 1) for n in ("sort", "copy")}
    assert len(streams) == 4
    inputs = [[e.prompt for e in islice(examples(0, "copy", form="none"), 5)]
              for _ in range(2)]  # fmt: skip
    assert inputs[0] == inputs[1]


# --- what is held out ---------------------------------------------------------------------------


def test_no_training_example_is_a_held_out_item():
    """Word pairs, sums with all their steps, and the people who are never asked two hops about."""
    word_tasks = {n for n in TASKS if any(p in HELD_OUT_PAIRS for p in _pairs(n, True))}
    assert {"plural", "opposite", "category", "young"} <= word_tasks
    for name in word_tasks:
        assert not set(_pairs(name, False)) & set(_pairs(name, True)), name
    for example in islice(examples(0, "expression"), 300):
        for match in re.finditer(r"\d+(?: [+-] \d+)+", example.prompt + " " + example.response):
            start, *rest = re.findall(r"[+-] \d+|\d+", match.group())
            problem = Problem(int(start), tuple(int(r.replace(" ", "")) for r in rest))
            assert not is_held_out_problem(problem), match.group()
    people = [n for n in the_world().names if is_held_out("person", n)]
    for example in islice(examples(0, "two_hop"), 300):
        question = example.prompt.split("?")[0]
        assert not any(re.search(rf"\b{p}\b", question) for p in people), question


def _pairs(name: str, held_out: bool) -> list[tuple[str, str]]:
    return [(e.prompt, e.response) for e in islice(examples(0, name, held_out, form="none"), 300)]


def test_held_out_questions_are_about_the_held_out():
    people = [n for n in the_world().names if is_held_out("person", n)]
    for example in islice(examples(0, "two_hop", held_out=True, templates=1), 100):
        assert any(re.search(rf"\b{p}\b", example.prompt) for p in people)
    known = set(the_world().names)
    for example in islice(examples(0, "passage", held_out=True, form="none"), 100):
        subjects = re.findall(r"(\w+)'s best friend is|(\w+) lives in", example.prompt)
        assert not {a or b for a, b in subjects} & known


# --- clusters -----------------------------------------------------------------------------------


def test_clusters_hold_every_task_once():
    assert sorted(n for names_ in CLUSTERS.values() for n in names_) == sorted(INSTRUCTIONS)
    assert set(TASKS) < set(INSTRUCTIONS) and len(INSTRUCTIONS) == 60


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(CLUSTERS)), max_size=4, unique=True))
def test_no_trained_task_is_of_a_held_out_type_or_its_kin(held_out):
    trained, unseen = split_clusters(held_out)
    trained_clusters = {INSTRUCTIONS[n].cluster for n in trained}
    assert {INSTRUCTIONS[n].cluster for n in unseen} == set(held_out)
    assert not trained_clusters & set(held_out)
    for a, b in KIN:
        assert not (a in held_out and b in trained_clusters)
        assert not (b in held_out and a in trained_clusters)
    kin = {c for pair in KIN if set(pair) & set(held_out) for c in pair}
    assert trained_clusters == set(CLUSTERS) - set(held_out) - kin


def test_impossible_splits_are_refused():
    with pytest.raises(ValueError, match="Unknown clusters"):
        split_clusters(["verbs"])
    with pytest.raises(ValueError, match="leave one to train on"):
        split_clusters(list(CLUSTERS))


def test_a_drawn_example_takes_the_form():
    example = draw_example(random.Random(3), "first", form="name")
    assert example.prompt.startswith("[first] ")
    assert example.response == example.prompt.removeprefix("[first] ").split(", ")[0]
