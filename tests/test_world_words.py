"""Documents about words: all of it true, and every held-out word told."""

import random
import re
from collections import Counter

import pytest

from course_lib.world import words
from course_lib.world.lists import LAYOUTS, OPERATIONS, draw_operations
from course_lib.world.tasks import TABLES, TASKS


def test_every_table_is_told_in_sentences_and_entries_and_asked_or_a_fact_of_the_world():
    assert set(words.STATEMENTS) == set(words.PROPERTIES) == set(TABLES)
    assert set(TABLES) - set(words.QUESTIONS) == {"region", "home", "job"}


def test_a_word_knows_its_tables():
    """"goose": an animal with a young, a sound, a plural, an article, and four of spelling."""
    assert sorted(words.TASKS_OF_WORD["goose"]) == [
        "article", "category", "first_letter", "last_letter", "length", "plural", "sound",
        "spell", "young",
    ]  # fmt: skip


def test_entries_tell_what_the_tables_say():
    """Each "property value" behind a headword is looked up in the table of that property."""
    rng, told = random.Random(1), Counter()
    names = {p: n for n, p in words.PROPERTIES.items()}
    for _ in range(600):
        page = words.entries(rng)
        if ": " not in page.split("\n")[0] or " | " in page or not page.endswith("."):
            continue  # the first layout, "dog: plural dogs; kind animal."
        for line in page.split("\n"):
            word, rest = line.rstrip(".").split(": ", 1)
            for part in rest.split("; "):
                name = next(names[p] for p in sorted(names, key=len, reverse=True)
                            if part.startswith(p + " "))  # fmt: skip
                assert TABLES[name][word] == part[len(words.PROPERTIES[name]) + 1 :], line
                told[name] += 1
    assert len(told) >= 20 and sum(told.values()) > 300


def test_glossaries_tell_what_the_tables_say():
    rng, seen = random.Random(2), 0
    by_property = {p: n for n, p in words.PROPERTIES.items()}
    for _ in range(1500):
        for prop, word, value in re.findall(
            r"^(?:the )?([a-z ]+) of (\w+) (?:->|=>|=|\|) ([\w ]+)$", words.glossary(rng), re.M
        ):
            assert TABLES[by_property[prop]][word] == value
            seen += 1
    assert seen > 300


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_held_out_word_is_told(name):
    """Else no list could be expected to know it: "number_word" once stood in no document."""
    held = {pair for pair in TABLES[name].items()}
    rng = random.Random(0)
    held -= {TASKS[name].draw(rng, False) for _ in range(4000)}
    assert held
    text = "\n".join(words.word_facts(rng) for _ in range(4000))
    for x, y in held:
        said = [t.format(x=x, y=y, X=x.capitalize(), Y=y.capitalize())
                for t in words.STATEMENTS[name]]  # fmt: skip
        assert any(s in text for s in said), (x, y)


def test_three_in_ten_facts_are_of_words_that_no_list_shows():
    """Of 4,000 draws of "plural" 1,200 ± 5 · 29 (five standard deviations)."""
    rng = random.Random(0)
    shown = {TASKS["plural"].draw(rng, False) for _ in range(4000)}
    held = sum(words.draw_fact(rng, "plural") not in shown for _ in range(4000))
    assert 1055 < held < 1345


def test_list_operations_are_lists_of_one_such_task():
    """Lines of the layout "x -> y" are read back and worked out again."""
    clusters = {t.cluster for t in OPERATIONS}
    assert clusters == {"lists", "compositions", "categories", "numbers"}
    assert "{x} -> {y}\n" in LAYOUTS
    works = {
        "reverse": lambda w: w[::-1], "copy": lambda w: w, "sort": sorted,
        "without_first": lambda w: w[1:], "without_last": lambda w: w[:-1],
        "first": lambda w: w[:1], "second": lambda w: w[1:2], "last": lambda w: w[-1:],
    }  # fmt: skip
    rng, found = random.Random(0), Counter()
    for _ in range(3000):
        rows = re.findall(r"^((?:[a-z]+, )+[a-z]+) -> ([a-z, ]+)$", draw_operations(rng), re.M)
        if len(rows) < 4:
            continue
        for name, work in works.items():
            found[name] += all(", ".join(work(x.split(", "))) == y for x, y in rows)
    assert set(found) == set(works) and min(found.values()) > 0
