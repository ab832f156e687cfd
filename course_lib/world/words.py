"""What the corpus says about words: sentences, questions, dictionary entries, glossaries.

Here every word of every table is told, also those that no in-context list shows: what a list asks
of a held-out word can be known from these documents alone. Three in ten facts are about the one
word in eight that is held out: the lists tell the others, too.
"""

import random
from collections.abc import Callable

from course_lib.world.lists import draw_layout
from course_lib.world.tasks import TABLES, TASKS, Pair

QA_LAYOUTS = ("Q: {q}\nA: {a}", "Question: {q}\nAnswer: {a}", "{q}\nA: {a}", "Q: {q} A: {a}")
HELD_OUT_SHARE = 0.3


def draw_qa_layout(rng: random.Random) -> str:
    """Half the documents use the first layout, which the evaluation uses too."""
    return QA_LAYOUTS[0] if rng.random() < 0.5 else rng.choice(QA_LAYOUTS[1:])


STATEMENTS = {
    "plural": ("The plural of {x} is {y}.", "One {x}, two {y}."),
    "opposite": ("The opposite of {x} is {y}.", "{X} is the contrary of {y}."),
    "past": ("The past tense of {x} is {y}.", "Today they {x}; yesterday they {y}."),
    "comparative": ("The comparative of {x} is {y}.", "This is {x}, but that is {y}."),
    "category": ("{X} is a kind of {y}.", "The word {x} names a kind of {y}."),
    "young": ("The young of the {x} is called {y}.", "A {y} is a young {x}."),
    "sound": ("The {x} can {y}.", "The cry of the {x} is called {y}."),
    "material": ("A {x} is often made of {y}.", "{Y} is good for a {x}."),
    "article": ("One says {y}.", "With its article {x} is {y}."),
    "digits": ("The number {x} is written {y}.", "In digits {x} is {y}."),
    "number_word": ("The number {x} is called {y}.", "In words {x} is {y}."),
    "next_day": ("After {x} comes {y}.", "{x} is followed by {y}."),
    "day_before": ("Before {x} comes {y}.", "The day before {x} is {y}."),
    "next_month": ("After {x} comes {y}.", "{x} is followed by {y}."),
    "next_letter": ("In the alphabet {y} comes after {x}.", "After {x} comes {y}."),
    "region": ("{x} lies in the {y}.", "The town of {x} is in the {y}."),
    "home": ("{x} lives in {y}.", "The home of {x} is {y}."),
    "job": ("The job of {x} is {y}.", "{x} works as {y}."),
    "first_letter": ("The word {x} begins with {y}.", "{x} starts with the letter {y}."),
    "last_letter": ("The word {x} ends with {y}.", "The last letter of {x} is {y}."),
    "spell": ("The word {x} is spelled {y}.", "{x} is written {y}."),
    "length": ("The word {x} has {y} letters.", "{x} is {y} letters long."),
    "sentiment_word": ("The word {x} is {y}.", "To say {x} is {y}."),
}
"""Of each table, how a sentence says that ``{y}`` belongs to ``{x}``."""
QUESTIONS = {
    "plural": "What is the plural of {x}?",
    "opposite": "What is the opposite of {x}?",
    "past": "What is the past tense of {x}?",
    "comparative": "What is the comparative of {x}?",
    "category": "What kind of thing is {x}?",
    "young": "What is a young {x} called?",
    "sound": "Which sound does the {x} make?",
    "material": "What is a {x} made of?",
    "article": "What is {x} with its article?",
    "digits": "How is {x} written in digits?",
    "number_word": "How is {x} written in words?",
    "next_day": "Which day comes after {x}?",
    "day_before": "Which day comes before {x}?",
    "next_month": "Which month comes after {x}?",
    "next_letter": "Which letter comes after {x}?",
    "first_letter": "Which letter does {x} begin with?",
    "last_letter": "Which letter does {x} end with?",
    "spell": "How is {x} spelled?",
    "length": "How many letters has {x}?",
    "sentiment_word": "Is the word {x} positive or negative?",
}
"""Of each table of words, how its fact is asked. People and towns are asked elsewhere."""
PROPERTIES = {
    "plural": "plural", "opposite": "opposite", "past": "past tense", "comparative": "comparative",
    "category": "kind", "young": "young", "sound": "sound", "material": "material",
    "article": "with article", "digits": "digits", "number_word": "in words",
    "next_day": "day after", "day_before": "day before", "next_month": "month after",
    "next_letter": "letter after", "region": "region", "home": "home", "job": "job",
    "first_letter": "first letter", "last_letter": "last letter", "spell": "spelling",
    "length": "length", "sentiment_word": "sense",
}  # fmt: skip
"""What a dictionary calls each table."""
TASKS_OF_WORD: dict[str, list[str]] = {}
for _name, _table in TABLES.items():
    for _word in _table:
        TASKS_OF_WORD.setdefault(_word, []).append(_name)


def _draw_name(rng: random.Random, names: dict[str, object]) -> str:
    """A table, the longer the likelier, so that each of its words is met about as often."""
    return rng.choices(list(names), [max(20, len(TABLES[n])) for n in names])[0]


def draw_fact(rng: random.Random, name: str) -> Pair:
    """One (word, value) pair of the table, in half of the draws one that no list shows."""
    return TASKS[name].draw(rng, rng.random() < HELD_OUT_SHARE)


def sentences(rng: random.Random) -> str:
    """Unconnected true sentences about words."""
    parts = []
    for _ in range(rng.randint(3, 10)):
        name = _draw_name(rng, STATEMENTS)
        x, y = draw_fact(rng, name)
        template = rng.choice(STATEMENTS[name])
        parts.append(template.format(x=x, y=y, X=x.capitalize(), Y=y.capitalize()))
    return " ".join(parts)


def _names_of_lines(rng: random.Random, names: dict[str, object], count: int) -> list[str]:
    """The tables of a document's lines: in half of the documents one and the same."""
    if rng.random() < 0.5:
        return [_draw_name(rng, names)] * count
    return [_draw_name(rng, names) for _ in range(count)]


def questions(rng: random.Random) -> str:
    """One to eight questions about words, with their answers."""
    layout, items = draw_qa_layout(rng), []
    for name in _names_of_lines(rng, QUESTIONS, rng.randint(1, 8)):
        x, y = draw_fact(rng, name)
        items.append(layout.format(q=QUESTIONS[name].format(x=x), a=y))
    return "\n".join(items)


ENTRIES = (  # (before the properties, each property, between them, at the end)
    ("{x}: ", "{p} {y}", "; ", "."),
    ("{x}\n", "{p}: {y}", "\n", ""),
    ("{x} (", "{p} {y}", ", ", ")"),
    ("{x} | ", "{p} = {y}", " | ", ""),
    ("Word: {x}\n", "- {p}: {y}", "\n", ""),
    ("{x}\n", "{p} -> {y}", "\n", ""),
)


def entries(rng: random.Random) -> str:
    """A page of a dictionary: one to four words, of each several properties."""
    before, one, between, after = rng.choice(ENTRIES)
    page = []
    for _ in range(rng.randint(1, 4)):
        x, _ = draw_fact(rng, _draw_name(rng, PROPERTIES))
        names = TASKS_OF_WORD[x]
        names = rng.sample(names, rng.randint(1, min(6, len(names))))
        told = [one.format(p=PROPERTIES[n], y=TABLES[n][x]) for n in names]
        page.append(before.format(x=x) + between.join(told) + after)
    return "\n".join(page)


HEADWORDS = ("{p} of {x}", "the {p} of {x}", "{x}, {p}", "{x} ({p})", "{p}: {x}")


def glossary(rng: random.Random) -> str:
    """Lines that name word and property and give the value: nothing has to be guessed."""
    layout, headword = draw_layout(rng), rng.choice(HEADWORDS)
    lines = []
    for i, name in enumerate(_names_of_lines(rng, PROPERTIES, rng.randint(3, 12)), 1):
        x, y = draw_fact(rng, name)
        lines.append(layout.format(x=headword.format(p=PROPERTIES[name], x=x), y=y, i=i))
    return "".join(lines).rstrip("\n")


FORMS: dict[Callable[[random.Random], str], float] = {
    sentences: 0.25, questions: 0.25, entries: 0.25, glossary: 0.25,
}  # fmt: skip


def word_facts(rng: random.Random) -> str:
    """One document about words, in one of ``FORMS``."""
    return rng.choices(list(FORMS), list(FORMS.values()))[0](rng)
