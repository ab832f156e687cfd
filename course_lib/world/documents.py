"""Every kind of document of the corpus, as functions from a generator to a text.

``KINDS`` maps the name of a kind to its generator; ``MIX`` gives each kind's share of the tokens.
Simplified away: everything a real crawl has beyond clean text (the raw crawl is a module of its
own); grammar errors; documents longer than the model's context.
"""

import random

from course_lib.world import lexicon, prose
from course_lib.world.arithmetic import TRIGGER, Problem, draw_problem, word_problem
from course_lib.world.facts import (
    ATTRIBUTES,
    RELATIONS,
    Person,
    ask,
    draw_two_hop,
    state,
    stranger,
    the_world,
)
from course_lib.world.heldout import is_held_out
from course_lib.world.lists import (
    draw_label_list,
    draw_list,
    draw_operations,
    draw_task,
    training_nonsense,
)
from course_lib.world.words import draw_qa_layout, word_facts

# --- the world ----------------------------------------------------------------------------------


def biography(rng: random.Random) -> str:
    """All facts of one person in a random order, with pronouns after the first sentence."""
    person = rng.choice(list(the_world().people.values()))
    relations = list(RELATIONS)
    rng.shuffle(relations)
    sentences = []
    for i, relation in enumerate(relations[: rng.randint(4, 6)]):
        sentence = state(relation, person.name, person.facts[relation], rng)
        if i and sentence.startswith(f"{person.name} ") and " and " not in sentence:
            sentence = person.pronoun.capitalize() + sentence[len(person.name) :]
        sentences.append(sentence)
    town = person.facts["town"]
    if rng.random() < 0.5:
        sentences.append(_town_fact(town, rng))
    return rng.choice(("", f"{person.name}\n", "About a neighbour. ")) + " ".join(sentences)


def _town_fact(town: str, rng: random.Random) -> str:
    facts = the_world().towns[town]
    return rng.choice(
        (
            f"{town} is in the {facts['region']}.",
            f"{town} is a town in the {facts['region']}.",
            f"{town} is known for {facts['product']}.",
            f"The people of {town} make {facts['product']}.",
        )
    )


def loose_facts(rng: random.Random) -> str:
    """Unconnected true sentences about several people and towns."""
    world = the_world()
    sentences = []
    for _ in range(rng.randint(3, 10)):
        if rng.random() < 0.25:
            sentences.append(_town_fact(rng.choice(list(world.towns)), rng))
        else:
            person = rng.choice(list(world.people.values()))
            relation = rng.choice(list(RELATIONS))
            sentences.append(state(relation, person.name, person.facts[relation], rng))
    return rng.choice((" ", "\n")).join(sentences)


def draw_fact_question(rng: random.Random, held_out: bool = False) -> tuple[str, str]:
    """A question about one fact and its answer; one (person, relation) in six is never asked."""
    world = the_world()
    while True:
        person = rng.choice(list(world.people.values()))
        relation = rng.choice(list(RELATIONS))
        if is_held_out("question", person.name, relation) == held_out:
            return ask(relation, person.name, rng), person.facts[relation]


def _town_question(rng: random.Random) -> tuple[str, str]:
    town, facts = rng.choice(list(the_world().towns.items()))
    if rng.random() < 0.5:
        return f"In which region is {town}?", facts["region"]
    return f"What is {town} known for?", facts["product"]


def world_questions(rng: random.Random) -> str:
    layout = draw_qa_layout(rng)
    items = []
    for _ in range(rng.randint(1, 8)):
        q, a = _town_question(rng) if rng.random() < 0.2 else draw_fact_question(rng)
        items.append(layout.format(q=q, a=a))
    return "\n".join(items)


def two_hop_questions(rng: random.Random) -> str:
    """Several two-hop questions answered in one manner, or a single one (see ``single_manner``)."""
    layout = draw_qa_layout(rng)
    count = rng.choice((1, 1, 2, 3, 4))
    manner = single_manner(rng) if count == 1 else rng.choice(("direct", "steps", "steps"))
    items = []
    for _ in range(count):
        question, steps, answer = draw_two_hop(rng)
        items.append(layout.format(q=question, a=reasoned(steps, answer, manner)))
    return "\n".join(items)


# --- direct answers, steps, trigger -------------------------------------------------------------


def single_manner(rng: random.Random) -> str:
    """How a lone problem is answered: rarely in steps unless the trigger asks for them."""
    return rng.choices(("direct", "trigger", "steps"), (0.55, 0.40, 0.05))[0]


def reasoned(steps: str, answer: object, manner: str) -> str:
    """The answer in one of three manners: ``"direct"``, ``"steps"``, ``"trigger"``."""
    if manner == "direct":
        return str(answer)
    worked = f"{steps} The answer is {answer}."
    return f"{TRIGGER} {worked}" if manner == "trigger" else worked


def draw_word_problem(rng: random.Random, operands: int, held_out: bool = False):
    """(text, problem) of a word problem about people of the world or strangers."""
    problem: Problem = draw_problem(rng, operands, held_out)
    people = list(the_world().people.values())
    hero = rng.choice(people) if rng.random() < 0.8 else stranger(rng)
    others = [p.name for p in rng.sample(people, 3) if p.name != hero.name]
    return word_problem(problem, hero.name, hero.pronoun, others, rng), problem


def arithmetic(rng: random.Random) -> str:
    """One to six sums or word problems, all answered in one manner."""
    words = rng.random() < 0.55
    count = rng.choice((1, 1, 2, 3) if words else (1, 1, 2, 3, 4, 5, 6))
    manner = single_manner(rng) if count == 1 else rng.choices(("direct", "steps"), (0.4, 0.6))[0]
    low, high = rng.choice(((2, 2), (2, 3), (3, 4), (2, 6), (5, 6), (5, 5), (4, 5)))
    bare = not words and manner == "direct" and rng.random() < 0.3
    layout = "{q} = {a}" if bare else draw_qa_layout(rng)
    asks = rng.random() < 0.3
    items, size = [], 0
    for _ in range(count):
        operands = rng.randint(low, high)
        if words:
            text, problem = draw_word_problem(rng, operands)
        else:
            problem = draw_problem(rng, operands)
            text = problem.expression
            text = f"What is {text}?" if asks and not bare else text
        items.append(layout.format(q=text, a=reasoned(problem.steps, problem.answer, manner)))
        size += len(items[-1])
        if size > 380:
            break
    return "\n".join(items)


# --- reading ------------------------------------------------------------------------------------


def counterfactual(rng: random.Random) -> Person:
    """A person of the world with facts drawn anew: the passage must win over memory."""
    known = rng.choice(list(the_world().people.values()))
    return Person(known.name, known.female, stranger(rng).facts)


def draw_passage_people(rng: random.Random, count: int, held_out: bool = False) -> list[Person]:
    """Different people to read about; with ``held_out`` strangers whose names never occur."""
    people: dict[str, Person] = {}
    invent = rng.random()
    while len(people) < count:
        known = not held_out and rng.random() > invent
        person = counterfactual(rng) if known else stranger(rng, held_out)
        people.setdefault(person.name, person)
    return list(people.values())


def draw_passage(rng: random.Random, people: list[Person], contrastive: bool) -> tuple[list, list]:
    """Sentences about the people and the (person, relation) pairs they state.

    Contrastive: the same one or two relations for everyone, so a reader has to match the person.
    """
    relations = list(RELATIONS)
    shared = rng.sample(relations, rng.choice((1, 2, 2)))
    stated = []
    for person in people:
        own = shared if contrastive else rng.sample(relations, rng.randint(1, 3))
        stated += [(person, relation) for relation in own]
    if rng.random() < 0.7:
        rng.shuffle(stated)
    sentences = [state(r, p.name, p.facts[r], rng) for p, r in stated]
    return sentences, stated


def layout_passage(sentences: list[str], rng: random.Random) -> str:
    """The sentences as prose, as notes with dashes, or as numbered documents."""
    form = rng.random()
    if form < 0.5:
        head = rng.choice(("", "", "Passage: ", "Text: ", "Read this. "))
        return head + " ".join(sentences)
    if form < 0.75:
        return rng.choice(("Notes:\n", "Context:\n", "")) + "\n".join(f"- {s}" for s in sentences)
    return rng.choice(("Documents:\n", "")) + "\n".join(
        f"[{i}] {s}" for i, s in enumerate(sentences, 1)
    )


def passage_questions(rng: random.Random) -> str:
    people = draw_passage_people(rng, rng.choice((1, 2, 2, 3, 3, 4)))
    sentences, stated = draw_passage(rng, people, contrastive=rng.random() < 0.65)
    layout = draw_qa_layout(rng)
    asked = rng.sample(stated, min(len(stated), rng.randint(1, 5)))
    items = [layout.format(q=ask(r, p.name, rng), a=p.facts[r]) for p, r in asked]
    return "\n".join([layout_passage(sentences, rng), *items])


def restatements(rng: random.Random) -> str:
    """A contrastive passage, and the same facts again in another order and other words.

    Each sentence of the second part ends in a value that only the right person's sentence of the
    first part tells: more such places than questions have on as many tokens.
    """
    people = draw_passage_people(rng, rng.choice((2, 2, 3, 3, 4)))
    sentences, stated = draw_passage(rng, people, contrastive=True)
    rng.shuffle(stated)
    again = [state(r, p.name, p.facts[r], rng) for p, r in stated]
    head = rng.choice(("\nAgain: ", "\nIn other words: ", "\nSo: ", "\n"))
    return layout_passage(sentences, rng) + head + " ".join(again)


# --- the rest ---------------------------------------------------------------------------------


def exercise_sheet(rng: random.Random) -> str:
    """Numbered instructions without answers: why the base model continues an instruction."""
    lines = [rng.choice(("Exercises", "Homework", "Practice", "Test"))]
    for i in range(1, rng.randint(4, 8)):
        task = draw_task(rng)
        x, _ = task.draw(rng, False)
        instruction = rng.choice(task.instructions)
        lines.append(f"{i}. {instruction}{rng.choice((': ', '. '))}{x}")
    return "\n".join(lines)


def noise(rng: random.Random) -> str:
    """Words in no order, letters and digits: the part of the corpus that nothing can predict."""
    words = [w for ws in lexicon.CATEGORIES.values() for w in ws]
    pools = (words, lexicon.LETTERS, [str(n) for n in range(100)], lexicon.MONTHS)
    return " ".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(8, 40)))


def repetitions(rng: random.Random) -> str:
    """A random sequence of words, nonsense and numbers, several times over.

    Only what stood before tells what comes next. Real text is full of such repetition: names,
    quotations, tables, code; it is what induction heads learn from (Olsson et al., 2022).
    """
    form = rng.random()
    length = rng.choice((3, 4, 5, 6, 8, 10, 14, 20, 30))
    items = []
    for _ in range(length):
        kind = rng.random()
        if kind < 0.65:
            items.append(rng.choice(lexicon.OPEN_WORDS + list(lexicon.RESERVED_LABELS)))
        elif kind < 0.85:
            items.append(training_nonsense(rng))
        else:
            items.append(str(rng.randint(0, 99)))
    joint = rng.choice((" ", " ", ", ", "; "))
    times = max(2, min(8, rng.randint(30, 70) // length))
    if form < 0.6:  # the same order each time
        return rng.choice(("\n", " ", ". ")).join([joint.join(items)] * times)
    chunks = [items[i : i + 3] for i in range(0, length, 3)]  # short runs, in a new order each time
    lines = []
    for _ in range(times):
        rng.shuffle(chunks)
        lines.append(joint.join(word for chunk in chunks for word in chunk))
    return rng.choice(("\n", " ", ". ")).join(lines)


KINDS = {
    "lists": draw_list,
    "label lists": draw_label_list,
    "list operations": draw_operations,
    "arithmetic": arithmetic,
    "passages": passage_questions,
    "restatements": restatements,
    "biographies": biography,
    "stories": prose.story,
    "reviews": prose.review,
    "loose facts": loose_facts,
    "world questions": world_questions,
    "word facts": word_facts,
    "two-hop questions": two_hop_questions,
    "dialogues": prose.dialogue,
    "exercise sheets": exercise_sheet,
    "repetitions": repetitions,
    "noise": noise,
}
MIX = {
    "lists": 0.18, "label lists": 0.05, "list operations": 0.12, "arithmetic": 0.15,
    "passages": 0.12, "restatements": 0.05, "word facts": 0.14, "biographies": 0.03,
    "stories": 0.02, "reviews": 0.03, "loose facts": 0.02, "world questions": 0.03,
    "two-hop questions": 0.03, "dialogues": 0.01, "exercise sheets": 0.005, "repetitions": 0.01,
    "noise": 0.005,
}  # fmt: skip
"""Share of the corpus's characters, by kind (of the tokens, lists and sums have a little more)."""
FIRST_MIX = {
    "repetitions": 0.35, "label lists": 0.10, "list operations": 0.10, "passages": 0.18,
    "word facts": 0.27,
}  # fmt: skip
"""What the base model reads first. Copying from the context is learnt late where it pays on few
tokens: after 13 million tokens of a mix without repetitions there was no trace of it. Where it pays
on most tokens it comes within two million, and everything that builds on it follows. Lists of named
tasks come later than the facts that they ask for: learnt first, they are learnt by heart, and words
that no list showed stay unknown in lists, however often sentences tell them."""
LAST_MIX = {
    "list operations": 0.24, "passages": 0.24, "lists": 0.13, "label lists": 0.04,
    "arithmetic": 0.08, "word facts": 0.09, "restatements": 0.04, "biographies": 0.02,
    "world questions": 0.03, "two-hop questions": 0.03, "stories": 0.01, "reviews": 0.02,
    "loose facts": 0.01, "dialogues": 0.01, "exercise sheets": 0.005, "noise": 0.005,
}  # fmt: skip
"""What it reads last, at smaller steps: more of what was learnt least, finding the right person's
fact among several and operations on lists."""
MIXES = {"first": FIRST_MIX, "main": MIX, "last": LAST_MIX}
for _mix in MIXES.values():
    assert abs(sum(_mix.values()) - 1) < 1e-9 and set(_mix) <= set(KINDS)
assert set(KINDS) == set(MIX) and set(ATTRIBUTES) < set(RELATIONS)
