"""Search by words: values by hand, the libraries against the formula, and fused rankings."""

import doctest
import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.rag import lexical
from course_lib.rag.lexical import BM25, TFIDF, bm25_scores, reciprocal_rank_fusion, words

BOTH = pytest.mark.parametrize("index", [TFIDF, BM25])
TERMS = st.lists(st.sampled_from("abcde"), max_size=6)


def scores_of(index, texts: list[str], query: str) -> list[float]:
    """The score of each text, in their order."""
    scores, ids = index.fit(texts).search([query], len(texts))
    return scores[0][np.argsort(ids[0])].tolist()


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(lexical)
    assert result.attempted == 4 and not result.failed


# --- words --------------------------------------------------------------------------------------


def test_words_are_the_same_however_they_are_written():
    """Composed or not (file names of macOS are not), in wide letters, in capitals."""
    assert words("Café, load_model(3)!") == ["café", "load_model", "3"]
    assert words(unicodedata.normalize("NFD", "Café 한글을")) == ["café", "한글", "글을"]
    assert words("ＣＡＴ STRASSE straße") == ["cat", "strasse", "strasse"]
    assert words("·—! ") == []


def test_runs_of_korean_letters_become_pairs():
    """A word of one or two letters stays; what is Latin inside is a word of its own."""
    assert words("나 검색 RAG는 벡터를 猫です") == [
        "나", "검색", "rag", "는", "벡터", "터를", "猫で", "です"]  # fmt: skip


@BOTH
def test_a_korean_term_is_found_behind_a_particle(index):
    texts = ["직접 선호 최적화", "보상 모델", "direct preference optimization"]
    scores, ids = index().fit(texts).search(["최적화가 뭐예요?", "모델은?", "Preference."], 1)
    assert ids[:, 0].tolist() == [0, 1, 2] and (scores > 0).all()


# --- TF-IDF -------------------------------------------------------------------------------------


def test_tfidf_by_hand():
    """Texts "a b" and "a c": idf(a) = ln(3/3) + 1 = 1, idf(b) = ln(3/2) + 1 = 1.4055; the first
    text's vector (1, 1.4055) is 1.7249 long. A query "b" is (0, 1): cosine 1.4055 / 1.7249. One
    without the 1 behind the logarithm would give 1."""
    assert scores_of(TFIDF(), ["a b", "a c"], "b") == pytest.approx([0.81480, 0.0], abs=1e-5)
    assert scores_of(TFIDF(), ["a b", "a c"], "a") == pytest.approx([0.57974, 0.57974], abs=1e-5)


def test_tfidf_is_a_cosine():
    """A text finds itself with 1, twice the text too, and an unknown word takes nothing away."""
    for query in ("a b", "b a a b", "a b zz"):
        assert scores_of(TFIDF(), ["a b", "a c"], query)[0] == pytest.approx(1)


# --- BM25 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "query", "k1", "b", "expected"),
    [
        # idf ln 2 with df 1, ln 1.2 with df 2, never negative; one of two words: times 1 / 2.5
        (["a b", "a c"], "b", 1.5, 0.75, [math.log(2) / 2.5, 0]),
        (["a b", "a c"], "a", 1.5, 0.75, [math.log(1.2) / 2.5, math.log(1.2) / 2.5]),
        # a word asked for twice counts twice
        (["a b", "a c"], "b b", 1.5, 0.75, [2 * math.log(2) / 2.5, 0]),
        # lengths 1 and 3, mean 2: tf 1 of 1 + 0.5 and of 1 + 1.5
        (["a", "a b b"], "a", 1.0, 1.0, [math.log(1.2) / 1.5, math.log(1.2) / 2.5]),
        (["a", "a b b"], "a", 1.0, 0.0, [math.log(1.2) / 2, math.log(1.2) / 2]),
        # tf 2 with k1 = 1: 2 / 3
        (["a a", "b b"], "a", 1.0, 0.5, [math.log(2) * 2 / 3, 0]),
        # an empty text has length 0 and counts in N: ln(1 + 1.5 / 1.5)
        (["a", ""], "a", 0.0, 1.0, [math.log(2), 0]),
        (["a", ""], "zz", 1.5, 0.75, [0, 0]),
        (["a", ""], "", 1.5, 0.75, [0, 0]),
        (["", ""], "a", 1.5, 0.75, [0, 0]),
    ],
)
def test_bm25_by_hand(texts, query, k1, b, expected):
    assert bm25_scores(words(query), [words(t) for t in texts], k1, b) == pytest.approx(expected)
    assert scores_of(BM25(k1, b), texts, query) == pytest.approx(expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TERMS, st.lists(TERMS, min_size=1, max_size=6), st.floats(0, 3), st.floats(0, 1))
def test_the_library_has_the_scores_of_the_formula(query, texts, k1, b):
    """With texts that have no term, and queries with terms that no text has."""
    found = scores_of(BM25(k1, b), [" ".join(text) for text in texts], " ".join(query))
    assert found == pytest.approx(bm25_scores(query, texts, k1, b), abs=1e-12)


@pytest.mark.parametrize(("k1", "b"), [(-0.1, 0.5), (1, -0.1), (1, 1.1), (math.nan, 0.5)])
def test_parameters_out_of_range_are_told(k1, b):
    for call in (lambda: BM25(k1, b), lambda: bm25_scores(["a"], [["a"]], k1, b)):
        with pytest.raises(ValueError, match="expected k1 >= 0 and 0 <= b <= 1"):
            call()


# --- the interface ------------------------------------------------------------------------------


@BOTH
def test_the_best_come_first_and_of_equal_ones_the_first(index):
    """Text 1 has the word twice of two, texts 0 and 3 once of two, text 2 not. More hits than texts
    there are none."""
    index = index().fit(["a b", "a a", "c", "a b"])
    scores, ids = index.search(["a", "c", "zz", ""], 9)
    assert scores.shape == ids.shape == (4, 4)
    assert ids.tolist() == [[1, 0, 3, 2], [2, 0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert (scores > 0).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]
    assert scores[0, 1] == scores[0, 2]
    few, first = index.search(["a", "c"], 2)
    assert (few == scores[:2, :2]).all() and (first == ids[:2, :2]).all()


@BOTH
def test_many_equal_ones_keep_their_order(index):
    """Sorting is stable for a few in any case; here are 60, every third with the word."""
    ids = index().fit(["a", "b", ""] * 20).search(["a"], 60)[1]
    assert ids[0].tolist() == [*range(0, 60, 3), *(i for i in range(60) if i % 3)]


@BOTH
def test_texts_without_a_word_score_nothing(index):
    assert scores_of(index(), ["", " ?!"], "a") == [0, 0]
    assert scores_of(index(), ["", "a"], "a")[0] == 0


@BOTH
def test_a_second_fit_forgets_the_first(index):
    index = index().fit(["a", "b"]).fit(["", ""])
    assert index.search(["a"], 2)[0].tolist() == [[0, 0]]


@BOTH
def test_terms_can_be_cut_otherwise(index):
    """Pieces of three letters find a word that was typed wrongly."""

    def trigrams(text):
        return [text[i : i + 3] for i in range(len(text) - 2)]

    texts = ["retrieval", "generation"]
    assert scores_of(index(tokenize=trigrams), texts, "retreival")[0] > 0
    assert scores_of(index(), texts, "retreival") == [0, 0]


@BOTH
def test_wrong_calls_are_told(index):
    with pytest.raises(ValueError, match="no texts to search in"):
        index().fit([])
    with pytest.raises(ValueError, match="call fit first"):
        index().search(["a"], 1)
    with pytest.raises(ValueError, match="k=0 of 1 texts"):
        index().fit(["a"]).search(["a"], 0)
    with pytest.raises(ValueError, match="put it into a list"):
        index().fit("a b")
    with pytest.raises(ValueError, match="put it into a list"):
        index().fit(["a"]).search("a", 1)


# --- fusion -------------------------------------------------------------------------------------

RANKINGS = st.lists(st.lists(st.integers(0, 7), unique=True, max_size=6), max_size=4)


def test_ranks_begin_at_1_and_what_a_ranking_lacks_adds_nothing():
    """With k = 1: "a" 1/2 + 1/4, "b" 1/3 + 1/2, "c" 1/3 from the second ranking alone."""
    scores, ids = reciprocal_rank_fusion([["a", "b"], ["b", "c", "a"]], k=1)
    assert ids == ["b", "a", "c"]
    assert scores == pytest.approx([5 / 6, 3 / 4, 1 / 3])


def test_equal_scores_are_in_the_order_of_their_ids():
    assert reciprocal_rank_fusion([[2, 10], [10, 2]])[1] == [2, 10]
    assert reciprocal_rank_fusion([["b"], ["a"]])[1] == ["a", "b"]


def test_the_search_fuses_without_what_it_did_not_find():
    """The words find 2 alone; the order of the texts that score 0 is no ranking."""
    scores, ids = BM25().fit(["a", "b", "c"]).search(["c"], 3)
    found = ids[scores > 0].tolist()
    assert found == [2]
    assert reciprocal_rank_fusion([found, [1, 2]])[1] == [2, 1]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(RANKINGS, st.integers(0, 100), st.randoms(use_true_random=False))
def test_the_order_of_the_rankings_does_not_count_to_the_last_digit(rankings, k, random):
    shuffled = random.sample(rankings, len(rankings))
    assert reciprocal_rank_fusion(rankings, k) == reciprocal_rank_fusion(shuffled, k)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(RANKINGS, st.integers(0, 100))
def test_laws_of_fusion(rankings, k):
    """Each ranking twice: each score twice. One ranking: itself. Empty ones add nothing. All that
    some ranking has is there once, the best first."""
    scores, ids = reciprocal_rank_fusion(rankings, k)
    twice, same = reciprocal_rank_fusion(2 * rankings, k)
    assert same == ids and twice == pytest.approx([2 * score for score in scores])
    for ranking in rankings:
        assert reciprocal_rank_fusion([ranking, []], k)[1] == ranking
    assert sorted(ids) == sorted({item for ranking in rankings for item in ranking})
    assert scores == sorted(scores, reverse=True)


def test_wrong_rankings_are_told():
    with pytest.raises(ValueError, match="Ranking 1 has an id twice"):
        reciprocal_rank_fusion([["a"], ["b", "b"]])
    for k in (-1, math.nan):
        with pytest.raises(ValueError, match=f"0 or more, got {k}"):
            reciprocal_rank_fusion([["a"]], k)
