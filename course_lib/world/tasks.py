"""The small tasks of the micro-world: input, output, and the ways to ask for them.

A task is a function from a generator to one (input, output) pair, together with several
instructions. The corpus shows tasks as in-context lists and asks them in exercise sheets; the
evaluation and the chapters on prompting and instruction tuning draw their held-out items here.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from course_lib.world import lexicon
from course_lib.world.facts import the_world
from course_lib.world.heldout import HELD_OUT_COMPOSITIONS, is_held_out

Pair = tuple[str, str]


@dataclass(frozen=True)
class Task:
    """A named task.

    ``draw(rng, held_out)`` returns one (input, output) pair; with ``held_out`` one that no
    in-context list of the corpus shows. ``instructions`` are imperative sentences without a final
    stop. ``cluster`` groups tasks of one kind, as FLAN does (Wei et al., 2022).
    """

    name: str
    cluster: str
    instructions: tuple[str, ...]
    draw: Callable[[random.Random, bool], Pair]


TASKS: dict[str, Task] = {}
TABLES: dict[str, dict[str, str]] = {}
"""Of the tasks that look a word up: word -> answer, the held-out words among them."""
HELD_OUT_PAIRS: set[Pair] = set()
"""Pairs of the word tasks that no in-context list shows, not even as a random label."""


def _add(name: str, cluster: str, instructions: str, draw: Callable[[random.Random, bool], Pair]):
    TASKS[name] = Task(name, cluster, tuple(instructions.split(" | ")), draw)


def _from_table(name: str, cluster: str, instructions: str, table: dict[str, str]) -> None:
    """A task that looks a word up. One word in eight is held out of the lists."""
    split = {
        flag: [(x, y) for x, y in table.items() if is_held_out("item", name, x) == flag]
        for flag in (True, False)
    }
    if not split[True]:  # a short table: hold out its last entry
        split[True] = split[False][-1:]
        split[False] = split[False][:-1]
    TABLES[name] = table
    HELD_OUT_PAIRS.update(split[True])
    _add(name, cluster, instructions, lambda rng, held_out: rng.choice(split[held_out]))


# --- words --------------------------------------------------------------------------------------

PLURALS = {word: lexicon.plural(word) for word in lexicon.COUNTABLE}
SPELLABLE = sorted(w for w in lexicon.WORD_TO_CATEGORY if " " not in w)
ARTICLES = {w: lexicon.with_article(w) for w in lexicon.COUNTABLE}
DIGITS_OF = {word: str(n) for n, word in enumerate(lexicon.NUMBER_WORDS)}

_from_table("plural", "words", "Give the plural of the word | Write the plural | "
            "Turn the word into its plural | Say it for more than one", PLURALS)
_from_table("opposite", "words", "Give the opposite of the word | Write the opposite | "
            "Name the word that means the contrary", lexicon.OPPOSITES)
_from_table("past", "words", "Give the past tense of the verb | Write the verb in the past tense | "
            "Put the verb into the past", lexicon.PAST_TENSE)
_from_table("comparative", "words", "Give the comparative of the word | Write the comparative | "
            "Compare: give the form for more of it", lexicon.COMPARATIVES)
_from_table("category", "words", "Name the category of the word | Say what kind of thing it is | "
            "Which category does the word belong to", lexicon.WORD_TO_CATEGORY)
_from_table("young", "words", "Name the young of the animal | What is its young called | "
            "Give the word for the baby animal", lexicon.YOUNG)
_from_table("sound", "words", "Name the sound that the animal makes | Say how the animal sounds | "
            "Give the cry of the animal", lexicon.SOUNDS)
_from_table("material", "words", "Say what the thing is made of | Name the material of the thing | "
            "Give the material", lexicon.MATERIALS)
_from_table("article", "words", "Put a or an before the word | Write the word with its article | "
            "Add the right article", ARTICLES)
_from_table("digits", "numbers", "Write the number in digits | Turn the word into digits | "
            "Give the digits", DIGITS_OF)
_from_table("number_word", "numbers", "Write the number as a word | Spell the number out | "
            "Give the word for the number", {v: k for k, v in DIGITS_OF.items()})
_from_table("next_day", "order", "Name the next day | Which day comes after it | "
            "Give the day that follows",
            dict(zip(lexicon.DAYS, lexicon.DAYS[1:] + lexicon.DAYS[:1], strict=True)))
_from_table("day_before", "order", "Name the day before | Which day comes before it",
            dict(zip(lexicon.DAYS[1:] + lexicon.DAYS[:1], lexicon.DAYS, strict=True)))
_from_table("next_month", "order", "Name the next month | Which month comes after it | "
            "Give the month that follows",
            dict(zip(lexicon.MONTHS, lexicon.MONTHS[1:] + lexicon.MONTHS[:1], strict=True)))
_from_table("next_letter", "order", "Name the next letter | Which letter comes after it",
            dict(zip(lexicon.LETTERS[:-1], lexicon.LETTERS[1:], strict=True)))
_from_table("region", "world", "Name the region of the town | In which region is the town | "
            "Say in which part of the country the town lies",
            {t: f["region"] for t, f in the_world().towns.items()})
_from_table("home", "world", "Name the town where the person lives | Say where the person lives | "
            "Give the person's home town",
            {n: p.facts["town"] for n, p in the_world().people.items()})
_from_table("job", "world", "Name the person's job | Say what the person works as",
            {n: p.facts["job"] for n, p in the_world().people.items()})
_from_table("first_letter", "spelling", "Give the first letter of the word | "
            "Write the letter that the word begins with", {w: w[0] for w in SPELLABLE})
_from_table("last_letter", "spelling", "Give the last letter of the word | "
            "Write the letter that the word ends with", {w: w[-1] for w in SPELLABLE})
_from_table("spell", "spelling", "Spell the word | Write the word letter by letter",
            {w: " ".join(w) for w in SPELLABLE})
_from_table("length", "spelling", "Count the letters of the word | How many letters has the word",
            {w: str(len(w)) for w in SPELLABLE})
_from_table("sentiment_word", "sentiment", "Say whether the word is positive or negative | "
            "Is the word praise or blame: positive or negative",
            {w: "positive" for w in lexicon.POSITIVE} | {w: "negative" for w in lexicon.NEGATIVE})


# --- lists of words and numbers -----------------------------------------------------------------

ALL_WORDS = SPELLABLE


def word_list(rng: random.Random, held_out: bool, low: int = 3, high: int = 5) -> list[str]:
    """Three to five different words; one list in eight is held out (by its words in order)."""
    while True:
        words = rng.sample(ALL_WORDS, rng.randint(low, high))
        if is_held_out("list", *words) == held_out:
            return words


def number_list(rng: random.Random, held_out: bool, low: int = 2, high: int = 4) -> list[int]:
    """Two to four different numbers from 0 to 60; one list in eight is held out."""
    while True:
        numbers = rng.sample(range(61), rng.randint(low, high))
        if is_held_out("list", *numbers) == held_out:
            return numbers


def _of_words(name: str, instructions: str, f: Callable[[list[str]], str]) -> None:
    def draw(rng: random.Random, held_out: bool) -> Pair:
        words = word_list(rng, held_out)
        return ", ".join(words), f(words)

    _add(name, "lists", instructions, draw)


def _of_numbers(name: str, instructions: str, f: Callable[[list[int]], object]) -> None:
    def draw(rng: random.Random, held_out: bool) -> Pair:
        numbers = number_list(rng, held_out)
        return ", ".join(map(str, numbers)), str(f(numbers))

    _add(name, "numbers", instructions, draw)


_of_words("first", "Give the first word of the list | Take the first word | "
          "Which word comes first in the list", lambda w: w[0])
_of_words("second", "Give the second word of the list | Take the second word | "
          "Which word comes second in the list", lambda w: w[1])
_of_words("last", "Give the last word of the list | Take the last word | "
          "Which word comes last in the list", lambda w: w[-1])
_of_words("reverse", "Reverse the list | Write the list backwards | Turn the list around",
          lambda w: ", ".join(w[::-1]))
_of_words("count", "Count the words of the list | How many words are in the list | "
          "Give the length of the list", lambda w: str(len(w)))
_of_words("without_first", "Drop the first word of the list | Leave the first word out",
          lambda w: ", ".join(w[1:]))
_of_words("without_last", "Drop the last word of the list | Leave the last word out",
          lambda w: ", ".join(w[:-1]))
_of_words("swap_ends", "Swap the first and the last word of the list | "
          "Let the first and the last word change places",
          lambda w: ", ".join([w[-1], *w[1:-1], w[0]]))
_of_words("join", "Join the words with and | Write the list with and between the words",
          lambda w: " and ".join(w))
_of_words("sort", "Sort the words by the alphabet | Put the words into alphabetical order",
          lambda w: ", ".join(sorted(w)))
_of_words("copy", "Copy the list | Write the list again", lambda w: ", ".join(w))
_of_numbers("largest", "Give the largest number | Which number is the largest | "
            "Pick the biggest number", max)
_of_numbers("smallest", "Give the smallest number | Which number is the smallest | "
            "Pick the least number", min)
_of_numbers("ascending", "Sort the numbers from small to large | Put the numbers in rising order",
            lambda n: ", ".join(map(str, sorted(n))))
_of_numbers("parity", "Say whether the last number is even or odd | "
            "Is the last number even or odd", lambda n: ("even", "odd")[n[-1] % 2])


def _draw_odd_one_out(rng: random.Random, held_out: bool) -> Pair:
    while True:
        same, other = rng.sample(sorted(lexicon.CATEGORIES), 2)
        words = rng.sample(lexicon.CATEGORIES[same], 3) + [rng.choice(lexicon.CATEGORIES[other])]
        odd = words[-1]
        rng.shuffle(words)
        if is_held_out("list", *words) == held_out:
            return ", ".join(words), odd


def _draw_pick_kind(rng: random.Random, held_out: bool) -> Pair:
    """A list of words and a category: the word of that category."""
    while True:
        kinds = rng.sample(sorted(lexicon.CATEGORIES), 3)
        words = [rng.choice(lexicon.CATEGORIES[k]) for k in kinds]
        i = rng.randrange(3)
        if is_held_out("list", *words) == held_out:
            return f"{', '.join(words)} ({kinds[i]})", words[i]


def _draw_contains(rng: random.Random, held_out: bool) -> Pair:
    words = word_list(rng, held_out)
    inside = rng.random() < 0.5
    word = rng.choice(words if inside else [w for w in ALL_WORDS if w not in words])
    return f"{', '.join(words)} ({word})", "yes" if inside else "no"


_add("odd_one_out", "categories", "Find the word that does not belong | Pick the odd one out",
     _draw_odd_one_out)
_add("pick_kind", "categories", "Pick the word of the kind in brackets | "
     "Which word is of the kind in brackets", _draw_pick_kind)
_add("contains", "lists", "Say yes if the word in brackets is in the list, else no | "
     "Is the word in brackets in the list", _draw_contains)


# --- sentences ----------------------------------------------------------------------------------

GIVING = (
    ("{a} gives {b} {t}", "{a} gives {t} to {b}", "{b} gets {t} from {a}",
     "{a} sends {t} to {b}", "{b} is given {t} by {a}")
)  # fmt: skip
GIFTS = lexicon.CATEGORIES["fruit"] + lexicon.CATEGORIES["clothing"] + lexicon.CATEGORIES["tool"]


def _giving(part: str) -> Callable[[random.Random, bool], Pair]:
    def draw(rng: random.Random, held_out: bool) -> Pair:
        while True:
            a, b = rng.sample(the_world().names, 2)
            thing = rng.choice(GIFTS)
            if is_held_out("list", a, b, thing) == held_out:
                break
        sentence = rng.choice(GIVING).format(a=a, b=b, t=lexicon.with_article(thing))
        return sentence, {"giver": a, "receiver": b, "gift": thing}[part]

    return draw


_add("giver", "sentences", "Who gives | Name the giver | Say who gives the thing away",
     _giving("giver"))
_add("receiver", "sentences", "Who gets it | Name the person who gets the thing",
     _giving("receiver"))
_add("gift", "sentences", "What is given | Name the thing that is given", _giving("gift"))

OPINION_THINGS = lexicon.FOODS + ["room", "film", "song", "hotel", "party", "trip", "shop", "book"]
OPINIONS = ("The {t} was {w}", "What {a} {t}", "I found the {t} {w}", "Such {a} {t}",
            "We had {a} {t}", "The {t} is {w}, I think")  # fmt: skip


def opinion(rng: random.Random, positive: bool, held_out: bool | None = None) -> str:
    """A short sentence of praise or blame, e.g. ``"The soup was delicious"``."""
    while True:
        word = rng.choice(lexicon.POSITIVE if positive else lexicon.NEGATIVE)
        thing = rng.choice(OPINION_THINGS)
        if held_out is None or is_held_out("list", word, thing) == held_out:
            break
    phrase = f"{lexicon.with_article(word)} {thing}"
    return rng.choice(OPINIONS).replace("{a} {t}", phrase).format(t=thing, w=word)


def _draw_sentiment(rng: random.Random, held_out: bool) -> Pair:
    positive = rng.random() < 0.5
    return opinion(rng, positive, held_out), "positive" if positive else "negative"


_add("sentiment", "sentiment", "Is the opinion positive or negative | Name the sentiment | "
     "Say whether the speaker is pleased: positive or negative", _draw_sentiment)


def _draw_sum(rng: random.Random, held_out: bool) -> Pair:
    from course_lib.world.arithmetic import draw_problem

    problem = draw_problem(rng, 2, held_out)
    return problem.expression, str(problem.answer)


_add("sum", "numbers", "Work out the result | Calculate | Give the result", _draw_sum)


# --- select, then transform ---------------------------------------------------------------------

SELECTORS: dict[str, Callable[[list[str]], str]] = {
    "first": lambda w: w[0],
    "second": lambda w: w[1],
    "last": lambda w: w[-1],
}
TRANSFORMS = {
    "plural": PLURALS,
    "opposite": lexicon.OPPOSITES,
    "past": lexicon.PAST_TENSE,
    "comparative": lexicon.COMPARATIVES,
}
WHAT = {"plural": "plural", "opposite": "opposite", "past": "past tense",
        "comparative": "comparative"}  # fmt: skip
COMPOSITIONS = tuple((s, t) for s in SELECTORS for t in TRANSFORMS)


def draw_composition(rng: random.Random, select: str, transform: str, held_out: bool) -> Pair:
    """E.g. first + plural: ("dog, chair, plum", "dogs")."""
    table = TRANSFORMS[transform]
    while True:
        words = rng.sample(sorted(table), rng.randint(2, 4))
        if is_held_out("list", *words) == held_out:
            return ", ".join(words), table[SELECTORS[select](words)]


def _composition(select: str, transform: str) -> Callable[[random.Random, bool], Pair]:
    return lambda rng, held_out: draw_composition(rng, select, transform, held_out)


for _s, _t in COMPOSITIONS:
    if (_s, _t) not in HELD_OUT_COMPOSITIONS:
        _add(f"{_s}_{_t}", "compositions", f"Give the {WHAT[_t]} of the {_s} word | "
             f"Take the {_s} word and write its {WHAT[_t]}", _composition(_s, _t))

WORD_TASKS = tuple(n for n in ("plural", "opposite", "past", "comparative", "category", "region",
                               "number_word", "first_letter"))  # fmt: skip
"""The tasks behind the evaluation's ``words_4shot``."""
