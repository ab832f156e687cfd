"""Facts, sums and tasks of the micro-world say what is true there."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.world import facts, lexicon, tasks
from course_lib.world.arithmetic import MAX_VALUE, Problem, draw_problem, word_problem
from course_lib.world.documents import reasoned
from course_lib.world.heldout import is_held_out
from course_lib.world.lists import LAYOUTS, LabelMap, render


def test_problem_by_hand():
    """12 + 3 - 4: the steps are 12 + 3 = 15 and 15 - 4 = 11."""
    problem = Problem(12, (3, -4))
    assert problem.operands == 3 and problem.answer == 11
    assert problem.expression == "12 + 3 - 4"
    assert problem.steps == "12 + 3 = 15. 15 - 4 = 11."
    assert reasoned(problem.steps, 11, "direct") == "11"
    assert reasoned(problem.steps, 11, "trigger") == (
        "Let's think step by step. 12 + 3 = 15. 15 - 4 = 11. The answer is 11."
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.booleans())
def test_drawn_problems_stay_in_range_and_on_their_side_of_the_split(seed, operands, held_out):
    problem = draw_problem(random.Random(seed), operands, held_out)
    values = [problem.start] + [p.answer for p in problem.pairs()]
    assert problem.operands == operands and all(0 <= v <= MAX_VALUE for v in values)
    assert is_held_out("problem", problem.expression) == held_out
    assert eval(problem.expression) == problem.answer == values[-1]


def test_word_problem_tells_the_numbers_in_order():
    rng = random.Random(0)
    text = word_problem(Problem(12, (3, -4)), "Mia", "she", ["Tom"], rng)
    assert text.startswith("Mia has 12 ") and text.endswith("does Mia have?")
    assert text.index("12") < text.index(" 3") < text.index(" 4")


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("dog", "dogs"), ("berry", "berries"), ("wolf", "wolves"), ("fox", "foxes"),
     ("monkey", "monkeys"), ("sheep", "sheep"), ("peach", "peaches"), ("tomato", "tomatoes")],
)  # fmt: skip
def test_plurals(noun, expected):
    assert lexicon.plural(noun) == expected


def test_the_world_is_one_circle_of_friends_in_thirty_towns():
    world = facts.the_world()
    assert len(world.people) == 120 and len(world.towns) == 30
    name, seen = "Mia", set()
    while name not in seen:
        seen.add(name)
        name = world.people[name].facts["friend"]
    assert seen == set(world.people)
    for region, chief in lexicon.REGIONS.items():
        assert world.towns[chief]["region"] == region


@pytest.mark.parametrize("hops", facts.TWO_HOPS)
def test_two_hop_answers_follow_from_the_facts(hops):
    """Followed by hand through the tables of the world, not through ``two_hop``."""
    world = facts.the_world()
    _, steps, answer = facts.two_hop("Mia", hops, random.Random(0))
    mia = world.people["Mia"].facts
    if hops[0] == "friend":
        assert answer == world.people[mia["friend"]].facts[hops[1]]
        assert mia["friend"] in steps
    else:
        assert answer == world.towns[mia["town"]][hops[1]]
        assert mia["town"] in steps
    assert answer in steps


EXPECTED = {
    "first": ("dog, cat, pig", "dog"),
    "second": ("dog, cat, pig", "cat"),
    "last": ("dog, cat, pig", "pig"),
    "reverse": ("dog, cat, pig", "pig, cat, dog"),
    "count": ("dog, cat, pig", "3"),
    "without_first": ("dog, cat, pig", "cat, pig"),
    "without_last": ("dog, cat, pig", "dog, cat"),
    "swap_ends": ("dog, cat, pig", "pig, cat, dog"),
    "join": ("dog, cat, pig", "dog and cat and pig"),
    "sort": ("dog, cat, pig", "cat, dog, pig"),
    "copy": ("dog, cat, pig", "dog, cat, pig"),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_list_tasks_by_hand(name, monkeypatch):
    monkeypatch.setattr(tasks, "word_list", lambda rng, held_out: ["dog", "cat", "pig"])
    assert tasks.TASKS[name].draw(random.Random(0), False) == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_training_and_held_out_items_of_a_task_never_meet(name):
    task, rng = tasks.TASKS[name], random.Random(0)
    seen, held = ({task.draw(rng, flag)[0] for _ in range(300)} for flag in (False, True))
    assert seen and held and not seen & held
    assert len(task.instructions) >= 2


def test_label_maps_are_consistent_and_their_held_out_labels_reserved():
    rng = random.Random(1)
    for held_out in (False, True):
        labels = LabelMap(rng, held_out=held_out, classes=3)
        for _ in range(50):
            word, label = labels.draw(rng)
            assert labels.labels[lexicon.WORD_TO_CATEGORY[word]] == label
        assert (set(labels.labels.values()) <= set(lexicon.RESERVED_LABELS)) == held_out


def test_every_layout_puts_a_space_before_the_answer():
    """Completions start with a space: the prompt may end right before it."""
    for layout in LAYOUTS:
        assert " INPUT" in " " + render([("INPUT", "OUTPUT")], layout)
        assert " OUTPUT" in render([("INPUT", "OUTPUT")], layout)
