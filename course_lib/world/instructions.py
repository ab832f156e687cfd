"""Instruction data: the world's tasks, questions and problems as (prompt, response) pairs.

A task is asked in questions that hold the input and in commands that stand beside it, and belongs
to a cluster of its kind; whole clusters can be kept out of training, so that the types of task that
are asked later were never trained (Wei et al., 2022, section 2.2). What is held out of the corpus
is held out here too.
Simplified away: templates that turn a task around ("give a word whose plural is dogs"), answers of
several lines.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from course_lib.world.arithmetic import TRIGGER, draw_problem
from course_lib.world.documents import (
    draw_fact_question,
    draw_passage,
    draw_passage_people,
    draw_word_problem,
    layout_passage,
    reasoned,
)
from course_lib.world.facts import ask, draw_two_hop
from course_lib.world.tasks import TASKS, Pair
from course_lib.world.wordings import questions_for

LAYOUTS = (
    "{i}: {x}", "{i}. {x}", "{x}. {i}.", "{i}:\n{x}", "Task: {i}. {x}", "{i}. Input: {x}",
    "Please do this. {i}: {x}", "{x}\n{i}.",
)  # fmt: skip
"""How an instruction and its input stand together. The evaluation uses the first."""
UNSEEN_LAYOUTS = ("Now {x}. {i}, please.", "Input: {x}\n{i}:")
"""Never trained on: they show whether a prompt is understood or its wording was learnt."""


class Example(NamedTuple):
    """One pair. The response ends with the answer, behind "The answer is" where there are steps."""

    prompt: str
    response: str
    task: str


@dataclass(frozen=True)
class InstructionTask:
    """A task and the ways to ask for it.

    All templates hold ``{x}`` for the input. ``templates`` are commands with the input beside them
    (of questions, passages and problems: words around them), the plainest first; ``questions`` are
    sentences around the input, the corpus's own first, and may be missing. ``unseen_templates`` are
    not for training. ``draw(rng, held_out)`` returns an input and its response.
    """

    name: str
    cluster: str
    templates: tuple[str, ...]
    unseen_templates: tuple[str, ...]
    draw: Callable[[random.Random, bool], Pair]
    questions: tuple[str, ...] = ()


def _templates(instructions: Sequence[str], layouts: Sequence[str]) -> tuple[str, ...]:
    """Every instruction in the first layout, then every one in the second, ..."""
    return tuple(layout.replace("{i}", i) for layout in layouts for i in instructions)


INSTRUCTIONS: dict[str, InstructionTask] = {
    task.name: InstructionTask(
        task.name, task.cluster, _templates(task.instructions, LAYOUTS),
        _templates(task.instructions, UNSEEN_LAYOUTS), task.draw, questions_for(task.name),
    )
    for task in TASKS.values()
}  # fmt: skip

# --- questions, reading, reasoning --------------------------------------------------------------

QUESTION_TEMPLATES = ("{x}", "Answer the question: {x}", "Question: {x}", "Tell me: {x}",
                      "{x} Answer briefly.", "Please answer.\n{x}")  # fmt: skip
UNSEEN_QUESTION_TEMPLATES = ("I have a question. {x}", "{x} What is the answer?")
READING_TEMPLATES = ("{x}", "Read the text and answer the question.\n{x}", "Text: {x}",
                     "Find the answer in the text.\n{x}", "Read this. {x}",
                     "Reading task: {x}")  # fmt: skip
UNSEEN_READING_TEMPLATES = ("Here is a text with a question.\n{x}", "Look it up: {x}")
STEPS_TEMPLATES = (f"{{x}} {TRIGGER}", f"{{x}}\n{TRIGGER}", f"{TRIGGER} {{x}}",
                   "Answer in steps: {x}", "Show the steps. {x}",
                   "{x} Show the steps.")  # fmt: skip
UNSEEN_STEPS_TEMPLATES = ("{x} Write down every step.", "Go step by step: {x}")


def _draw_passage(rng: random.Random, held_out: bool) -> Pair:
    """A passage about one to three people and a question; with ``held_out`` about strangers."""
    people = draw_passage_people(rng, rng.randint(1, 3), held_out)
    sentences, stated = draw_passage(rng, people, contrastive=True)
    person, relation = rng.choice(stated)
    question = ask(relation, person.name, rng)
    return f"{layout_passage(sentences, rng)}\n{question}", person.facts[relation]


def _draw_two_hop(rng: random.Random, held_out: bool) -> Pair:
    question, steps, answer = draw_two_hop(rng, held_out)
    return question, reasoned(steps, answer, "steps")


def _draw_expression(rng: random.Random, held_out: bool) -> Pair:
    problem = draw_problem(rng, rng.randint(2, 5), held_out)
    return problem.expression, reasoned(problem.steps, problem.answer, "steps")


def _draw_word_problem(rng: random.Random, held_out: bool) -> Pair:
    text, problem = draw_word_problem(rng, rng.randint(2, 5), held_out)
    return text, reasoned(problem.steps, problem.answer, "steps")


def _add(name: str, cluster: str, templates: Sequence[str], unseen: Sequence[str], draw) -> None:
    INSTRUCTIONS[name] = InstructionTask(name, cluster, tuple(templates), tuple(unseen), draw)


_add("fact", "questions", QUESTION_TEMPLATES, UNSEEN_QUESTION_TEMPLATES, draw_fact_question)
_add("passage", "reading", READING_TEMPLATES, UNSEEN_READING_TEMPLATES, _draw_passage)
_add("two_hop", "reasoning", STEPS_TEMPLATES, UNSEEN_STEPS_TEMPLATES, _draw_two_hop)
_add("expression", "reasoning", STEPS_TEMPLATES, UNSEEN_STEPS_TEMPLATES, _draw_expression)
_add("word_problem", "reasoning", STEPS_TEMPLATES, UNSEEN_STEPS_TEMPLATES, _draw_word_problem)

# --- clusters -----------------------------------------------------------------------------------

CLUSTERS: dict[str, tuple[str, ...]] = {
    cluster: tuple(t.name for t in INSTRUCTIONS.values() if t.cluster == cluster)
    for cluster in dict.fromkeys(t.cluster for t in INSTRUCTIONS.values())
}
"""Cluster -> names of its tasks."""
KIN = (("words", "compositions"), ("lists", "compositions"), ("world", "questions"))
"""Clusters that show each other's types of task: where one is held out, so is the other."""


def split_clusters(held_out: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the tasks to train on, and of those whose types are kept for the end.

    Args:
        held_out: clusters. Their kin is neither trained on nor asked.

    Returns:
        (trained, unseen).

    Raises:
        ValueError: an unknown cluster, or nothing left to train on.

    Example:
        >>> trained, unseen = split_clusters(["words"])
        >>> unseen[:3], "plural" in trained, "first_plural" in trained, "sort" in trained
        (['plural', 'opposite', 'past'], False, False, True)
    """
    if unknown := sorted(set(held_out) - set(CLUSTERS)):
        raise ValueError(f"Unknown clusters {unknown}: choose from {sorted(CLUSTERS)}.")
    banned = {c for pair in KIN if set(pair) & set(held_out) for c in pair} | set(held_out)
    trained = [name for c, names in CLUSTERS.items() if c not in banned for name in names]
    if not trained:
        raise ValueError("Every cluster is held out: leave one to train on.")
    return trained, [name for c in held_out for name in CLUSTERS[c]]


# --- examples -----------------------------------------------------------------------------------

FORMS = ("instruction", "question", "command", "name", "none")


def ask_for(
    task: InstructionTask, x: str, rng: random.Random, form: str = "instruction",
    templates: int | None = None, unseen: bool = False,
) -> str:  # fmt: skip
    """The prompt for an input.

    Args:
        form: ``"question"``, one of the task's questions; ``"command"``, one of its templates;
            ``"instruction"``, one or the other, as often; ``"name"``, the task's name in brackets
            before the input; ``"none"``, the input alone (the ablation of Wei et al., 2022,
            section 4.3). Where a task has no questions its templates serve for them.
        templates: draw from the first so many of either only; all of them when None.
        unseen: draw from the templates that training never uses, whatever the form.

    Raises:
        ValueError: an unknown form, or no template to draw from.

    Example:
        >>> ask_for(INSTRUCTIONS["plural"], "dog", random.Random(0), "question", templates=1)
        'What is the plural of dog?'
        >>> ask_for(INSTRUCTIONS["plural"], "dog", random.Random(0), "command", templates=1)
        'Give the plural of the word: dog'
        >>> ask_for(INSTRUCTIONS["first_letter"], "dog", random.Random(0), "name")
        '[first letter] dog'
    """
    if form not in FORMS or (templates is not None and templates < 1):
        raise ValueError(
            f"form must be one of {FORMS} and templates at least 1, got {form!r} and {templates}."
        )
    if form == "none":
        return x
    if form == "name":
        return f"[{task.name.replace('_', ' ')}] {x}"
    asks = form == "question" or (form == "instruction" and rng.random() < 0.5)
    choice = task.questions if asks and task.questions else task.templates
    choice = task.unseen_templates if unseen else choice[:templates]
    return rng.choice(choice).replace("{x}", x)


def draw_example(rng: random.Random, name: str, held_out: bool = False, **how) -> Example:
    """One example of a task.

    Args:
        held_out: an item that neither the corpus nor any training example shows.
        how: ``form``, ``templates`` and ``unseen`` of ``ask_for``.
    """
    task = INSTRUCTIONS[name]
    x, response = task.draw(rng, held_out)
    return Example(ask_for(task, x, rng, **how), response, name)


def examples(seed: int, name: str, held_out: bool = False, **how) -> Iterator[Example]:
    """An endless stream of a task's examples, always the same for the same arguments.

    Example:
        >>> next(examples(0, "reverse")).task
        'reverse'
    """
    rng = random.Random(f"instructions {seed} {name} {held_out}")
    while True:
        yield draw_example(rng, name, held_out, **how)
