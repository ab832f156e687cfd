"""The people and towns of the micro-world, and the sentences and questions about them.

The world is one fixed draw (seed 0): its facts are what the base model memorises. People of the
world have short names; invented people (``stranger``) have nonsense names and live only inside one
passage, so a reader of that passage cannot know the answer from memory.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

from course_lib.world import lexicon
from course_lib.world.heldout import HELD_OUT_RELATION_PAIRS, is_held_out

WORLD_SEED = 0


@dataclass(frozen=True)
class Person:
    """A person and what is true of them. ``facts`` maps a relation's name to its value."""

    name: str
    female: bool
    facts: dict[str, str]

    @property
    def pronoun(self) -> str:
        return "she" if self.female else "he"


@dataclass(frozen=True)
class Relation:
    """One attribute of a person: how it is stated, asked, and referred to.

    ``statements`` and ``questions`` hold ``{n}`` for the person and ``{v}`` for the value;
    ``{n}`` of a question may be a phrase such as *Mia's best friend*.
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...]


def _article(noun: str) -> str:
    return lexicon.with_article(noun)


RELATIONS: dict[str, Relation] = {
    r.name: r
    for r in (
        Relation(
            "town",
            ("{n} lives in {v}.", "{n}'s home is in {v}.", "{v} is the town where {n} lives."),
            ("Where does {n} live?", "Which town does {n} live in?",
             "In which town is {n}'s home?"),
            tuple(lexicon.TOWNS),
        ),
        Relation(
            "job",
            ("{n} works as {a}.", "{n} is {a}.", "{n} earns a living as {a}."),
            ("What is {n}'s job?", "What does {n} do for a living?", "What does {n} work as?"),
            tuple(lexicon.JOBS),
        ),
        Relation(
            "food",
            ("{n}'s favourite food is {v}.", "{n} likes {v} more than any other food.",
             "The food that {n} likes best is {v}."),
            ("What is {n}'s favourite food?", "What does {n} like to eat most?",
             "Which food does {n} like best?"),
            tuple(lexicon.FOODS),
        ),
        Relation(
            "pet",
            ("{n} has {a}.", "{n} keeps {a} as a pet.", "{n}'s pet is {a}."),
            ("Which pet does {n} have?", "What is {n}'s pet?", "What animal does {n} keep?"),
            tuple(lexicon.PETS),
        ),
        Relation(
            "colour",
            ("{n}'s favourite colour is {v}.", "{n} likes the colour {v} best.",
             "Of all colours {n} likes {v} most."),
            ("What is {n}'s favourite colour?", "Which colour does {n} like best?",
             "What colour does {n} like most?"),
            tuple(lexicon.COLOURS),
        ),
        Relation(
            "friend",
            ("{n}'s best friend is {v}.", "{n} names {v} as the best friend.",
             "The best friend of {n} is {v}."),
            ("Who is {n}'s best friend?", "What is the name of {n}'s best friend?"),
            (),
        ),
    )
}  # fmt: skip
ATTRIBUTES = tuple(name for name in RELATIONS if name != "friend")


def state(relation: str, name: str, value: str, rng: random.Random) -> str:
    """A sentence saying that ``value`` is ``name``'s ``relation``, in one of several wordings."""
    template = rng.choice(RELATIONS[relation].statements)
    return template.format(n=name, v=value, a=_article(value))


def ask(relation: str, name: str, rng: random.Random) -> str:
    """A question for ``name``'s ``relation``, in one of several wordings."""
    return rng.choice(RELATIONS[relation].questions).format(n=name)


@dataclass(frozen=True)
class World:
    """All people (by name) and towns (name -> region, product) of the micro-world."""

    people: dict[str, Person]
    towns: dict[str, dict[str, str]]

    @property
    def names(self) -> list[str]:
        return list(self.people)


@lru_cache
def the_world() -> World:
    """The one world that the corpus tells of and the base model knows."""
    rng = random.Random(WORLD_SEED)
    names = list(lexicon.FEMALE_NAMES + lexicon.MALE_NAMES)
    circle = names[:]
    rng.shuffle(circle)
    friend = {a: b for a, b in zip(circle, circle[1:] + circle[:1], strict=True)}
    people = {
        name: Person(
            name,
            name in lexicon.FEMALE_NAMES,
            {a: rng.choice(RELATIONS[a].values) for a in ATTRIBUTES} | {"friend": friend[name]},
        )
        for name in names
    }
    regions = list(lexicon.REGIONS)
    towns = {}
    for i, town in enumerate(lexicon.TOWNS):
        towns[town] = {"region": regions[i % 5], "product": rng.choice(lexicon.PRODUCTS)}
    for region, chief in lexicon.REGIONS.items():
        towns[chief]["region"] = region
    return World(people, towns)


def stranger(rng: random.Random, held_out: bool = False) -> Person:
    """An invented person with a nonsense name.

    Args:
        held_out: draw from the names that never occur in the corpus (newcomers, evaluation).
    """
    while True:
        name = lexicon.nonsense_word(rng).capitalize()
        if is_held_out("name", name) == held_out:
            break
    values = {a: rng.choice(RELATIONS[a].values) for a in ATTRIBUTES}
    values["friend"] = rng.choice(the_world().names)
    return Person(name, rng.random() < 0.5, values)


@lru_cache
def newcomers(count: int = 30) -> tuple[Person, ...]:
    """People who moved into the world after the corpus was written: no document names them."""
    rng = random.Random("newcomers")
    people: dict[str, Person] = {}
    while len(people) < count:
        person = stranger(rng, held_out=True)
        people.setdefault(person.name, person)
    return tuple(people.values())


# --- two hops -----------------------------------------------------------------------------------

TWO_HOPS = tuple(("friend", a) for a in RELATIONS) + (("town", "region"), ("town", "product"))
REGION_QUESTIONS = ("In which region does {n} live?", "Which part of the country does {n} live in?")
PRODUCT_QUESTIONS = ("What is {n}'s home town known for?", "What is the town of {n} known for?")


def two_hop(name: str, hops: tuple[str, str], rng: random.Random) -> tuple[str, str, str]:
    """A question that needs two facts.

    Args:
        name: a person of the world.
        hops: one of ``TWO_HOPS``.

    Returns:
        (question, steps, answer), e.g. ("Where does Mia's best friend live?", "Mia's best friend
        is Tom. Tom lives in Oakby.", "Oakby").
    """
    world = the_world()
    person = world.people[name]
    if hops[0] == "friend":
        friend, relation = person.facts["friend"], hops[1]
        answer = world.people[friend].facts[relation]
        question = ask(relation, f"{name}'s best friend", rng)
        first = RELATIONS["friend"].statements[0].format(n=name, v=friend)
        second = RELATIONS[relation].statements[0].format(n=friend, v=answer, a=_article(answer))
        return question, f"{first} {second}", answer
    town = person.facts["town"]
    first = f"{name} lives in {town}."
    if hops[1] == "region":
        answer = world.towns[town]["region"]
        question = rng.choice(REGION_QUESTIONS).format(n=name)
        return question, f"{first} {town} is in the {answer}.", answer
    answer = world.towns[town]["product"]
    question = rng.choice(PRODUCT_QUESTIONS).format(n=name)
    return question, f"{first} {town} is known for {answer}.", answer


def draw_two_hop(rng: random.Random, held_out: bool = False) -> tuple[str, str, str]:
    """A two-hop question about a person who is (or, for training, is not) held out of them."""
    while True:
        name = rng.choice(the_world().names)
        hops = rng.choice(TWO_HOPS)
        if is_held_out("person", name) == held_out and hops not in HELD_OUT_RELATION_PAIRS:
            return two_hop(name, hops, rng)
