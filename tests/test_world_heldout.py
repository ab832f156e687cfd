"""The corpus never shows what the evaluation asks: a search through real documents."""

import random
import re
from itertools import islice

import pytest

from course_lib.world import lexicon, lists, tasks
from course_lib.world.arithmetic import Problem, is_held_out_problem
from course_lib.world.corpus import documents, shard_documents
from course_lib.world.documents import MIXES
from course_lib.world.facts import RELATIONS, newcomers, the_world
from course_lib.world.heldout import HELD_OUT_COMPOSITIONS, is_held_out

DOCUMENTS = 45_000


@pytest.fixture(scope="module")
def corpus():
    """Documents that the base model was trained on, about 12 MB of text: 45,000 of the main mix and
    4,000 of each other one."""
    others = [d for mix in MIXES if mix != "main" for i in (0, 1)
              for d in shard_documents(0, i, mix)]  # fmt: skip
    return list(islice(documents(0), DOCUMENTS)) + others


def _lists_of(corpus):
    return [d.text for d in corpus if "list" in d.kind]


def _problems(text: str) -> list[Problem]:
    found = []
    for match in re.finditer(r"\d+(?: [+-] \d+)+", text):
        start, *rest = re.findall(r"[+-] \d+|\d+", match.group())
        found.append(Problem(int(start), tuple(int(r.replace(" ", "")) for r in rest)))
    return found


def test_no_held_out_expression_occurs(corpus):
    """Every sum in the corpus, steps and lists included, is checked against the rule."""
    problems = {p for d in corpus if d.kind != "noise" for p in _problems(d.text)}
    assert len(problems) > 8_000
    assert [p for p in problems if is_held_out_problem(p)] == []


def test_no_held_out_word_problem_occurs(corpus):
    """The numbers of a word problem, signed by its verbs, are read back from the story."""
    gain = r"(?:finds|buys|gets|picks|wins|is given) (\d+)"
    loss = r"(?:gives|loses|sells|eats|throws|drops) (\d+)"
    seen = 0
    for d in corpus:
        if d.kind != "arithmetic":
            continue
        for story in re.findall(r"has (\d+) \w+\.((?: (?:He|She) [^.]*\.)+) How many", d.text):
            changes = [
                int(g) if g else -int(x)
                for g, x in re.findall(rf"{gain}|{loss}", story[1])
            ]
            seen += 1
            assert not is_held_out_problem(Problem(int(story[0]), tuple(changes)))
    assert seen > 1_000


def test_reserved_labels_never_stand_in_a_list(corpus):
    words = re.compile(r"\b(" + "|".join(lexicon.RESERVED_LABELS) + r")\b", re.IGNORECASE)
    assert [t for t in _lists_of(corpus) if words.search(t)] == []
    told = " ".join(d.text for d in corpus if d.kind == "stories")
    assert {w.lower() for w in words.findall(told)} == set(lexicon.RESERVED_LABELS)


def test_no_list_line_shows_a_held_out_item(corpus):
    """A line "wolf -> wolves" must not occur for a held-out word, in whatever layout."""
    shown = set()
    for text in _lists_of(corpus):
        shown.update(re.findall(r"(?:^|: |- |\. )(\w+)(?: [^\w\s]+ |: )(\w[\w ]*)$", text, re.M))
    assert ("dog", "dogs") in shown or len(shown) > 1_000
    for name in ("plural", "past", "young", "sound", "comparative"):
        table = {"plural": tasks.PLURALS, "past": lexicon.PAST_TENSE, "young": lexicon.YOUNG,
                 "sound": lexicon.SOUNDS, "comparative": lexicon.COMPARATIVES}[name]  # fmt: skip
        held = {(x, y) for x, y in table.items() if is_held_out("item", name, x)}
        assert held and not held & shown


def test_held_out_names_and_newcomers_never_occur(corpus):
    text = " ".join(d.text for d in corpus)
    names = {w for w in re.findall(r"\b[A-Z][a-z]+\b", text)}
    assert not names & {p.name for p in newcomers()}
    known = set(the_world().names) | set(lexicon.TOWNS)
    strangers = set(re.findall(r"\b([A-Z][a-z]+)'s pet", text)) - known
    assert len(strangers) > 500
    assert [n for n in strangers if is_held_out("name", n)] == []


def test_held_out_people_are_never_asked_about_in_two_hops(corpus):
    held = {n for n in the_world().names if is_held_out("person", n)}
    text = "\n".join(d.text for d in corpus if d.kind == "two-hop questions")
    asked = set(re.findall(r"(\w+)'s best friend(?:'s| like| live| work| do| have| keep)", text))
    answer = r"A(?:nswer)?: (?:Let's think step by step\. )?(\w+)'s best friend"
    hops = set(re.findall(answer, text))
    assert 10 < len(held) < 40 and len(asked) > 50
    assert not held & hops
    assert not held & set(re.findall(r"(?:region|country) (?:does|do) (\w+) live", text))


def test_the_held_out_pair_of_relations_is_never_asked(corpus):
    text = "\n".join(d.text for d in corpus)
    for question in RELATIONS["colour"].questions:
        pattern = re.escape(question).replace(re.escape("{n}"), r"\w+'s best friend")
        assert not re.search(pattern, text)


def test_held_out_questions_are_stated_but_never_asked(corpus):
    """Each (person, relation) that is held out occurs as a statement and not as a question."""
    world = the_world()
    questions = {
        line for d in corpus if d.kind in ("world questions", "dialogues")
        for line in re.findall(r"(?:^|: )([^:\n]*\?)", d.text, re.M)
    }  # fmt: skip
    stated = "\n".join(d.text for d in corpus if d.kind in ("biographies", "loose facts"))
    held = [(n, r) for n in world.names for r in RELATIONS if is_held_out("question", n, r)]
    assert len(held) > 60
    for name, relation in held:
        for template in RELATIONS[relation].questions:
            assert template.format(n=name) not in questions
    for name, _ in held[:10]:
        assert name in stated


def test_no_list_adds_an_unseen_k(corpus):
    counts = {k: 0 for k in range(-9, 16)}
    for text in _lists_of(corpus):
        pairs = re.findall(r"^(?:Q: |\d+\. |- |In: |Input: )?(\d+)\D+(\d+)$", text, re.M)
        gaps = {int(b) - int(a) for a, b in pairs}
        if len(pairs) >= 4 and len(gaps) == 1 and pairs:
            gap = gaps.pop()
            counts[gap] = counts.get(gap, 0) + 1
    assert sum(counts.values()) > 20
    assert [k for k in lists.UNSEEN_K if counts[k]] == []


def test_no_list_shows_a_held_out_composition(corpus):
    """A list all of whose lines fit a held-out (select, transform) pair must not occur.

    Single lines may fit by accident (the first word is also the last of one), so a list counts
    only when four or more of its lines do and no training composition explains them.
    """

    def fits(rows, select, transform):
        table, pick = tasks.TRANSFORMS[transform], tasks.SELECTORS[select]
        return all(table.get(pick(x)) == y for x, y in rows if len(x) > 1)

    explained = 0
    for text in _lists_of(corpus):
        rows = [
            (x.split(", "), y)
            for x, y in re.findall(r"((?:\w+, )+\w+)(?:\n)?\W+(?:\w+: )?(\w+)$", text, re.M)
        ]
        if len(rows) < 4:
            continue
        matching = [c for c in tasks.COMPOSITIONS if fits(rows, *c)]
        explained += bool(matching)
        assert not matching or set(matching) - HELD_OUT_COMPOSITIONS
    assert explained > 100


def test_the_search_would_find_a_leak():
    """Control: the patterns above do match what they look for."""
    leak = Problem(12, (3, -4))
    assert leak in _problems("Q: 12 + 3 - 4\nA: 11")
    assert _problems("12 + 3 = 15. 15 - 4 = 11.") == [Problem(12, (3,)), Problem(15, (-4,))]


def test_no_random_label_or_code_happens_to_be_a_held_out_answer():
    """Labels come from the whole lexicon, so "dog -> puppy" could come about by chance."""
    rng = random.Random(0)
    pairs = []
    for _ in range(6000):
        pairs += lists._label_pairs(rng, 40) + lists._code_pairs(rng, 40)
    assert len(pairs) > 200_000 and len(tasks.HELD_OUT_PAIRS) > 100
    assert not set(pairs) & tasks.HELD_OUT_PAIRS
