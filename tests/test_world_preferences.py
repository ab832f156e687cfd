"""The preference task: the truth by hand, no hole in it, labellers who do what they say."""

import doctest
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from course_lib.world import lexicon, preferences
from course_lib.world.preferences import (
    EXPERIENCE,
    FLATTERY,
    INSULTS,
    Judgement,
    Labeller,
    Question,
    demonstration,
    judge,
    panel,
    questions,
    read_sentence,
)
from course_lib.world.prose import ASPECTS, REVIEW_SENTENCES, VENUES

INN, MUSEUM = Question("inn", "Oakby"), Question("museum", "Milton")
LOWEST = -2.0
"""The least truth of an honest reply: four idle sentences or more, and no reason."""
THINGS = sorted({thing for things in ASPECTS.values() for thing in things})
WORDS = [*lexicon.POSITIVE, *lexicon.NEGATIVE]


def sentence(template: int, thing: str, word: str) -> str:
    article = "an" if word[0] in "aeiou" else "a"
    return REVIEW_SENTENCES[template].format(a=thing, w=word, aw=f"{article} {word}")


SENTENCES = frozenset([*FLATTERY, *INSULTS, *(
    sentence(*parts) for parts in itertools.product(range(len(REVIEW_SENTENCES)), THINGS, WORDS)
)])  # fmt: skip
"""Every sentence that can be read, written out: what ``judge`` finds by patterns."""


def whole(reply: str) -> bool:
    """Whether a reply is sentences that can be read, none of them twice, a space between two and at
    most one before the first: looked up in a list, where ``judge`` reads by patterns."""
    parts = reply.removeprefix(" ").replace(".", ".|").replace("!", "!|").split("|")
    if parts.pop() or not parts or any(not part.startswith(" ") for part in parts[1:]):
        return False
    sentences = [parts[0], *(part[1:] for part in parts[1:])]
    return len(set(sentences)) == len(sentences) and SENTENCES.issuperset(sentences)


def within(count: int, n: int, p: float) -> bool:
    """Whether a count lies where a binomial one does but once in a million."""
    return binom.ppf(5e-7, n, p) <= count <= binom.isf(5e-7, n, p)


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(preferences)
    assert result.attempted >= 5 and not result.failed


# --- questions ----------------------------------------------------------------------------------


def test_no_question_is_both_asked_and_held_out():
    """300 places, one in five held out; 6000 questions of each kind ask about every place."""
    asked, held_out = (set(itertools.islice(questions(3, kind), 6000)) for kind in (False, True))
    assert not asked & held_out and len(asked | held_out) == len(VENUES) * len(lexicon.TOWNS) == 300
    assert within(len(held_out), 300, 1 / 5)
    assert INN.text == "What is good at the inn in Oakby?"
    assert {question.venue for question in held_out} == set(VENUES)


def test_questions_hang_on_the_seed_alone():
    first, again, other = ([*itertools.islice(questions(seed), 50)] for seed in (1, 1, 2))
    assert first == again != other
    assert [*itertools.islice(questions(1, True), 50)] != first


# --- the truth by hand --------------------------------------------------------------------------

CASES = [
    # reply, what is counted, helpful, honest, harmless, readable
    ("The soup was wonderful.", {"reasons": 1}, 1, 0, 0, 0),
    (" The soup was wonderful.", {"reasons": 1}, 1, 0, 0, 0),
    ("The soup was terrible.", {"idle": 1}, -0.5, 0, 0, 0),
    ("The soup was wonderful. What a tasty soup!", {"reasons": 1, "idle": 1}, 0.5, 0, 0, 0),
    ("The soup was bland. What a tasty soup!", {"reasons": 1, "idle": 1}, 0.5, 0, 0, 0),
    ("I like you. The bed is cosy, I think.", {"flattery": 1, "reasons": 1}, 0.5, 0, 0, 0),
    ("We had an awful pie.", {"claims": 1}, -0.5, -1, 0, 0),
    ("I found the pie tasty. My friends said the bed was cosy.", {"claims": 2}, -1, -2, 0, 0),
    ("The coffee was great.", {"absent": 1}, -0.5, -1, 0, 0),
    ("We had a great coffee.", {"absent": 1}, -0.5, -1, 0, 0),
    ("I do not like you. The bed was cosy.", {"insults": 1, "reasons": 1}, 0.5, 0, -2, 0),
    ("", {"broken": 1}, 0, 0, 0, -3),
    ("The bed", {"broken": 1}, 0, 0, 0, -3),
    ("The bed was cosy. The bed", {"reasons": 1, "broken": 1}, -0.5, 0, 0, -3),
    ("The bed was cosy. The bed was cosy.", {"reasons": 1, "broken": 1}, -0.5, 0, 0, -3),
    ("Bed. Bed.", {"broken": 2}, 0, 0, 0, -4),
    ("A. B. C. D. E.", {"broken": 5}, 0, 0, 0, -5),
    # six reasons: three count, and three are sentences too many
    (" ".join(sentence(0, thing, "great") for thing in ASPECTS["inn"]), {"reasons": 6},
     1.5, 0, 0, 0),
    # six blames cost what four cost
    (" ".join(sentence(0, thing, "poor") for thing in ASPECTS["inn"]), {"idle": 6}, -2, 0, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "counts", "helpful", "honest", "harmless", "readable"), CASES)
def test_the_truth_by_hand(reply, counts, helpful, honest, harmless, readable):
    found = judge(INN, reply)
    assert found == Judgement(**counts)
    assert found.sentences == sum(counts.values())
    parts = (found.helpful, found.honest, found.harmless, found.readable)
    assert parts == (helpful, honest, harmless, readable) and found.truth == sum(parts)


def test_each_place_has_its_own_things():
    """An inn has beds and a museum none; a museum has a shop."""
    assert judge(MUSEUM, "The bed was cosy.") == Judgement(absent=1)
    assert judge(MUSEUM, "The shop was charming.") == Judgement(reasons=1)
    assert judge(INN, "The shop was charming.") == Judgement(absent=1)


def test_a_reply_that_was_cut_off_is_broken_where_its_sentences_are_whole():
    assert judge(INN, "The bed was cosy.", ended=False) == Judgement(reasons=1, broken=1)
    assert judge(INN, "The bed", ended=False) == Judgement(broken=1)
    assert judge(INN, "", ended=False) == Judgement(broken=1)


def test_a_sentence_is_read_as_it_was_written():
    """Every template, thing and word: what comes out is what went in, and a wrong article, another
    case or one letter less is no sentence."""
    for i, thing, word in itertools.product(range(len(REVIEW_SENTENCES)), THINGS, WORDS):
        text = sentence(i, thing, word)
        assert read_sentence(text) == (thing, word in lexicon.POSITIVE)
        assert read_sentence(text[:-1]) is read_sentence(text.lower()) is None
    for text in ("We had a awful pie.", "What an cosy bed!", "The car was great.",
                 "The bed was red.", "The bed was cosy", "The  bed was cosy.", "The bed was cosy!",
                 "The bed was cosy.\n", *FLATTERY, *INSULTS):  # fmt: skip
        assert read_sentence(text) is None


# --- no hole ------------------------------------------------------------------------------------


def test_counts_have_no_hole():
    """Honest: at least one sentence, and none is a claim, absent, an insult or broken; the least is
    -2. Broken: -3 at the most. Enumerated; more of anything changes neither, see the next test."""
    some = range(6)
    honest = [Judgement(reasons=r, idle=i, flattery=f).truth
              for r, i, f in itertools.product(some, some, range(4)) if r + i + f]  # fmt: skip
    broken = [Judgement(r, i, f, c, a, n, b).truth for r, i, f, c, a, n, b in itertools.product(
        some, some, range(4), range(3), range(3), range(3), range(1, 6))]  # fmt: skip
    assert min(honest) == LOWEST and max(honest) == 3
    assert max(broken) == -3


COUNT = st.integers(0, 10**6)


@given(*[COUNT] * 7)
@settings(deadline=None, derandomize=True)
def test_counts_of_any_size_have_no_hole(r, i, f, c, a, n, b):
    assert Judgement(r, i, f, c, a, n, b + 1).truth <= -3
    assert LOWEST <= Judgement(r, i, f).truth <= 3
    more = Judgement(r + 1, i, f).truth - Judgement(r, i, f).truth
    assert more <= (1 if r < 3 else 0), "a fourth reason gains nothing"


BED = "The bed was cosy."
GAMES = {
    "nothing": "",
    "a space": " ",
    "lines": "\n\n\n",
    "a mark": "!",
    "marks": ". . .",
    "a mark behind": BED + " !",
    "two marks": "The bed was cosy.!",
    "an ellipsis": "The bed was cosy...",
    "a question": "What a cosy bed?",
    "quotes": f'"{BED}"',
    "lower case": BED.lower(),
    "upper case": BED.upper(),
    "twice": f"{BED} {BED}",
    "ten times": " ".join([BED] * 10),
    "twice, in capitals": f"{BED} {BED.upper()}",
    "twice, more space": f"{BED} The bed  was cosy.",
    "twice, a space behind": f"{BED} {BED} ",
    "twice, over lines": f"{BED}\n{BED}\n",
    "twice, glued": BED + BED,
    "twice, far apart": f"{BED} The soup was great. {BED}",
    "flattery ten times": " ".join([FLATTERY[0]] * 10),
    "all flattery twice": " ".join(FLATTERY * 2),
    "no space": BED + "The soup was great.",
    "two spaces": BED + "  The soup was great.",
    "lines between": BED + "\n\n\nThe soup was great.",
    "a space behind": BED + " ",
    "lines behind": BED + "\n" * 50,
    "spaces before": "  " + BED,
    "a tab": "\t" + BED,
    "a hard space": "The\u00a0bed was cosy.",
    "no width": BED + "\u200b",
    "another alphabet": "The b\u0435d was cosy.",
    "a wide mark": "The bed was cosy\uff0e",
    "a tail": BED + " The soup was",
    "a tail in the next line": BED + "\nThe soup",
    "a tail that ends": BED + " The soup.",
    "a tail of a word": BED + " The",
    "a wrong article": "What an cosy bed!",
    "a thing that nobody knows": "The sofa was cosy.",
    "a word that nobody knows": "The bed was soft.",
    "two in one": "The bed was cosy and the soup was great.",
    "a template": "The {a} was {w}.",
    "a special token": BED + "<|end|>",
    "the question": INN.text,
    "many reasons and a tail": " ".join(sentence(0, t, "great") for t in ASPECTS["inn"]) + " The",
    "half a chat": BED + "<|user|> " + INN.text,
}


@pytest.mark.parametrize("reply", GAMES.values(), ids=GAMES)
def test_no_trick_reaches_an_honest_reply(reply):
    assert not whole(reply)
    assert judge(INN, reply).broken and judge(INN, reply).truth <= -3 < LOWEST


def test_the_lowest_honest_reply_is_above():
    """Four blames; all flattery and six blames; the same thing blamed in every template that claims
    nothing."""
    plain = [i for i, t in enumerate(REVIEW_SENTENCES) if not t.startswith(EXPERIENCE)]
    blames = [sentence(0, thing, "poor") for thing in ASPECTS["inn"]]
    beds = [sentence(i, "bed", word) for word in lexicon.NEGATIVE for i in plain]
    for sentences in (blames[:4], [*FLATTERY, *blames], beds[:4], beds):
        assert judge(INN, " ".join(sentences)).truth == LOWEST


def test_saying_it_again_in_other_words_gains_nothing():
    plain = [i for i, t in enumerate(REVIEW_SENTENCES) if not t.startswith(EXPERIENCE)]
    again = [sentence(i, "bed", word) for i in plain for word in lexicon.POSITIVE]
    truths = [judge(INN, " ".join(again[:n])).truth for n in range(1, len(again) + 1)]
    assert truths[0] == 1 and truths == sorted(truths, reverse=True) and truths[-1] == -1


PIECES = st.one_of(
    st.builds(sentence, st.integers(0, 6), st.sampled_from(THINGS), st.sampled_from(WORDS)),
    st.builds(sentence, st.sampled_from([0, 3, 4]), st.sampled_from(ASPECTS["inn"]),
              st.sampled_from(lexicon.POSITIVE)),
    st.sampled_from([*FLATTERY, *INSULTS, *GAMES.values(), "The", "bed", ".", "!", "?"]),
    st.text(max_size=4),
)  # fmt: skip
JOINTS = st.sampled_from([" ", " ", " ", " ", "", "  ", "\n", "\t", "\u00a0"])


@given(st.lists(st.tuples(JOINTS, PIECES), max_size=8), st.booleans())
@settings(max_examples=600, deadline=None, derandomize=True)
def test_any_text_is_whole_or_below_every_honest_one(pieces, ended):
    """Pieces put together in any way. The judge calls broken what is not in the list of sentences,
    and nothing else; what is broken has -3 at the most."""
    reply = "".join(joint + piece for joint, piece in pieces)
    found = judge(INN, reply, ended)
    assert (found.broken == 0) == (whole(reply) and ended)
    if found.broken:
        assert found.truth <= -3
    elif not (found.claims or found.absent or found.insults):
        assert LOWEST <= found.truth <= 3
    assert found.truth == judge(INN, reply.removeprefix(" "), ended).truth or reply[:2] == "  "


def test_a_search_finds_no_hole():
    """Twenty climbs of 600 edits each, from a reply that was cut off: a character or a piece is put
    in, taken out or doubled, and what is not worse stays. None that is not whole comes to more than
    -3."""
    rng, best = random.Random(0), -math.inf
    pieces = [*GAMES.values(), *(sentence(0, t, "great") for t in ASPECTS["inn"]), " ", ".", "\n"]
    for _ in range(20):
        reply, truth = "The bed was cosy. The soup was", -math.inf
        for _ in range(600):
            i, j = sorted(rng.choices(range(len(reply) + 1), k=2))
            j = min(j, i + 25)
            new = rng.choice((
                reply[:i] + rng.choice(pieces) + reply[i:], reply[:i] + reply[j:],
                reply[:j] + reply[i:], reply[:i] + rng.choice(". !?abcT") + reply[i:],
            ))  # fmt: skip
            found = judge(INN, new)
            if not whole(new) and len(new) < 400 and found.truth >= truth:
                reply, truth = new, found.truth
        best = max(best, truth)
    assert best == -3


# --- people -------------------------------------------------------------------------------------


def test_demonstrations_are_what_the_docstring_says():
    """10,000 of them, all readable and about what is there. Flattery begins 1/4, insults 1/5;
    things: one of 1/4, two of 1/2, three of 1/4; of the sentences without a claim one in five
    blames. Half the writers claim in .8 of their sentences, so .5 · (1 - .2/4 - .2²/2 - .2³/4) =
    .464 of the replies have a claim."""
    rng, n = random.Random(5), 10_000
    found = []
    for question in itertools.islice(questions(0), n):
        text = demonstration(rng, question)
        found.append(judge(question, text))
        assert whole(text) and not text.startswith(" ")
        first = text.split("!")[0].split(".")[0]
        assert bool(found[-1].flattery) == any(s.startswith(first) for s in FLATTERY)
        assert bool(found[-1].insults) == any(s.startswith(first) for s in INSULTS)
    assert not any(j.broken or j.absent for j in found)
    assert all(j.flattery + j.insults <= 1 for j in found)
    assert within(sum(j.flattery for j in found), n, 0.25)
    assert within(sum(j.insults for j in found), n, 0.2)
    things = [j.reasons + j.idle + j.claims for j in found]
    for count, share in ((1, 0.25), (2, 0.5), (3, 0.25)):
        assert within(things.count(count), n, share)
    blamed, praised = sum(j.idle for j in found), sum(j.reasons for j in found)
    assert within(blamed, blamed + praised, 0.2)
    assert within(sum(j.claims > 0 for j in found), n, 0.464)


REPLIES = [Judgement(reasons=2), Judgement(reasons=1), Judgement(reasons=1, flattery=1),
           Judgement(idle=1)]  # fmt: skip
"""Truths 2, 1, .5, -.5."""


def test_how_often_one_is_preferred_by_hand():
    """Truths 2 and 1, noise .5: σ(2) = .8808; noise 1: σ(1) = .7311."""
    assert Labeller(noise=0.5).prefers(*REPLIES[:2]) == pytest.approx(0.880797)
    assert Labeller(noise=1.0).prefers(*REPLIES[:2]) == pytest.approx(0.7310586)
    assert Labeller(noise=1.0).prefers(REPLIES[1], REPLIES[0]) == pytest.approx(0.2689414)
    assert Labeller(noise=1e-300).prefers(REPLIES[1], REPLIES[0]) == 0  # no overflow
    exact = Labeller(noise=0.0)
    assert [exact.prefers(REPLIES[0], other) for other in REPLIES] == [0.5, 1, 1, 1]
    assert exact.prefers(REPLIES[1], REPLIES[0]) == 0


def test_two_are_ranked_as_often_as_they_are_preferred():
    """20,000 rankings of two, for three kinds of noise."""
    n = 20_000
    for noise in (0.5, 1.0, 3.0):
        one, rng = Labeller(noise=noise), random.Random(f"two {noise}")
        for pair in (REPLIES[:2], REPLIES[1::2]):
            won = sum(one.rank(pair, rng) == [0, 1] for _ in range(n))
            assert within(won, n, one.prefers(*pair))


def test_rankings_are_draws_from_the_model_of_plackett_and_luce():
    """20,000 rankings of four. Any two stand as often in their order as if they were alone; each of
    the 24 orders comes as often as first from all, then from the rest. Gumbel noise with its sign
    turned has the same pairs and other orders."""
    n, one, rng = 20_000, Labeller(noise=1.0), random.Random(4)
    ranks = [one.rank(REPLIES, rng) for _ in range(n)]
    for i, j in itertools.combinations(range(4), 2):
        won = sum(rank[i] < rank[j] for rank in ranks)
        assert within(won, n, one.prefers(REPLIES[i], REPLIES[j]))
    orders = [tuple(sorted(range(4), key=rank.__getitem__)) for rank in ranks]
    weights, turned_differs = [math.exp(one.worth(reply)) for reply in REPLIES], False
    for order in itertools.permutations(range(4)):
        share = turned = 1.0
        for k in range(4):
            share *= weights[order[k]] / sum(weights[i] for i in order[k:])
            turned *= (1 / weights[order[3 - k]]) / sum(1 / weights[i] for i in order[: 4 - k])
        assert within(orders.count(order), n, share)
        turned_differs |= not within(orders.count(order), n, turned)
    assert turned_differs


def test_without_noise_the_order_is_exact_and_equal_ones_tie():
    one, rng = Labeller(noise=0.0), random.Random(0)
    assert one.rank([REPLIES[i] for i in (3, 0, 2, 1)], rng) == [3, 0, 2, 1]
    assert one.rank([REPLIES[i] for i in (1, 0, 1, 3)], rng) == [1, 0, 1, 2]
    assert one.rank([REPLIES[1]] * 3, rng) == [0, 0, 0]
    assert rng.random() == random.Random(0).random(), "nothing was drawn"


def test_a_labeller_weighs_and_is_biased_as_it_says():
    """Two reasons and three others, a claim and an insult of them: helpful 2 - .5 · 3, honest -1,
    harmless -2. The weights 2, 3, 5 make .5 · 2 - 3 - 10 = -12. Broken costs the same
    whoever reads it: -3, and the one other sentence -.5 · 2."""
    reply = Judgement(reasons=2, flattery=1, claims=1, insults=1)
    assert Labeller().worth(reply) == reply.truth == 0.5 - 1 - 2
    weighing = Labeller(helpful=2, honest=3, harmless=5)
    assert weighing.worth(reply) == -12
    assert weighing.worth(Judgement(reasons=1, broken=1)) == -1 - 3
    polite, long = Labeller(flattery_bias=0.7), Labeller(length_bias=0.7)
    plain = Labeller()
    for one in (plain, polite, long):
        assert one.worth(Judgement()) == 0
    for i in range(3):
        base, more, said = (Judgement(reasons=2, **k)
                            for k in ({}, {"flattery": i}, {"idle": i}))  # fmt: skip
        assert polite.worth(more) - plain.worth(more) == pytest.approx(0.7 * i)
        assert polite.worth(said) == plain.worth(said)
        assert long.worth(more) - plain.worth(more) == pytest.approx(0.7 * (2 + i))
        assert long.worth(said) - long.worth(base) == pytest.approx(i * (0.7 - 0.5))
        assert polite.worth(more) - polite.worth(base) == pytest.approx(i * (0.7 - 0.5))


def test_a_panel_disagrees_as_much_as_it_is_told():
    """Logarithms of 3 · 2000 weights: mean 0, deviation .3, both within five standard errors."""
    people = panel(0, 2000, noise=0.2, length_bias=0.1, flattery_bias=0.4)
    assert people == panel(0, 2000, noise=0.2, length_bias=0.1, flattery_bias=0.4)
    assert people[:8] != panel(1, 8, noise=0.2, length_bias=0.1, flattery_bias=0.4)
    for person in people:
        assert (person.noise, person.length_bias, person.flattery_bias) == (0.2, 0.1, 0.4)
    logs = [math.log(w) for p in people for w in (p.helpful, p.honest, p.harmless)]
    error = 0.3 / math.sqrt(len(logs))
    assert abs(sum(logs) / len(logs)) < 5 * error
    assert abs(math.sqrt(sum(x * x for x in logs) / len(logs)) - 0.3) < 5 * error / math.sqrt(2)
    assert len({(p.helpful, p.honest, p.harmless) for p in people}) == 2000
    assert panel(3, 4, disagreement=0.0, noise=0.1) == [Labeller(noise=0.1)] * 4
    assert len(panel(0)) == 8


@pytest.mark.parametrize("noise", [-0.1, math.inf, math.nan])
def test_noise_that_makes_no_sense(noise):
    with pytest.raises(ValueError, match=f"noise must be finite and not negative, got {noise}"):
        Labeller(noise=noise)


def test_one_reply_has_no_rank():
    with pytest.raises(ValueError, match="at least two replies, got 1"):
        Labeller().rank([Judgement()], random.Random(0))
