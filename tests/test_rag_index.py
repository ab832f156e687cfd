"""The interface of all indexes, and the flat one: hand-made rankings, laws over kinds, errors."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rag_vectors import OWN, clustered

from course_lib.rag import index as module
from course_lib.rag.faiss_index import FaissIndex
from course_lib.rag.index import (
    LONGEST,
    NO_HIT,
    FlatIndex,
    blocks,
    hits,
    lengths_of,
    normalised,
    top_k,
)

D = 8
MAKERS = {name: lambda c=c, p=p: c(D, **p) for name, (c, p) in OWN.items()} | {
    f"faiss {name}": lambda name=name, p=p: FaissIndex(D, name, **p) for name, (_, p) in OWN.items()
}
"""Every kind, ours and FAISS's, empty."""
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
our_kinds = pytest.mark.parametrize("make", [MAKERS[name] for name in OWN], ids=list(OWN))


def filled(make, n: int = 60, sources=None):
    index = make()
    x = clustered(0, n, D)
    index.train(x)
    index.add(x, sources)
    return index, x


def flat(x, **settings) -> FlatIndex:
    index = FlatIndex(len(x[0]), **settings)
    index.add(np.array(x, np.float32))
    return index


def test_examples():
    assert doctest.testmod(module, extraglobs={"np": np}).failed == 0


# --- rankings by hand ---------------------------------------------------------------------------


def test_inner_product_and_cosine_rank_otherwise():
    """Of q = (1, 0): with (10, 10) 10 and with (1, 0) 1; the cosines are .7071 and 1."""
    x, q = [[10, 10], [1, 0]], np.array([[1.0, 0.0]])
    scores, ids = flat(x).search(q, 2)
    assert ids.tolist() == [[0, 1]] and scores.tolist() == [[10, 1]]
    scores, ids = flat(x, metric="cosine").search(q * 5, 2)
    assert ids.tolist() == [[1, 0]]
    np.testing.assert_allclose(scores, [[1, 0.70710678]], atol=1e-6)


@every_kind
def test_a_zero_vector_has_score_0_and_is_no_nan(make):
    """As a document and as a query, with cosine; by hand in the flat index, others in all kinds."""
    scores, ids = flat([[0, 0], [1, 0], [-1, 0]], metric="cosine").search(np.eye(2), 3)
    assert ids.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert scores.tolist() == [[1, 0, -1], [0, 0, 0]]
    index = make()
    index.metric = "cosine"
    x = clustered(1, 60, D)
    x[7] = 0
    index.train(x)
    index.add(x)
    scores, ids = index.search(np.concatenate([np.zeros((1, D)), x[:5]]), 60)
    assert not np.isnan(scores).any()


def test_fewer_vectors_than_k_are_all_the_hits():
    scores, ids = flat([[1], [3], [2]]).search([[1.0]], 5)
    assert ids.tolist() == [[1, 2, 0]] and scores.tolist() == [[3, 2, 1]]


def test_of_equal_scores_the_older_comes_first_at_the_last_place_too():
    """Scores 1 3 3 3 2: of the three that tie, k = 2 takes ids 1 and 2."""
    index = flat([[1], [3], [3], [3], [2]])
    assert index.search([[1.0]], 2)[1].tolist() == [[1, 2]]
    assert index.search([[1.0]], 4)[1].tolist() == [[1, 2, 3, 4]]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 40))
def test_the_highest_are_those_of_sorting(scores, k):
    ids = np.random.default_rng(0).permutation(len(scores))
    found, names = top_k(np.array(scores, np.float32), ids, k)
    pairs = sorted(zip(scores, ids.tolist()), key=lambda pair: (-pair[0], pair[1]))[:k]
    assert list(zip(found.tolist(), names.tolist())) == pairs


def test_no_hit_cannot_be_read_as_a_document():
    """With -1 the last document would be taken for one."""
    documents = ["first", "last"]
    with pytest.raises(IndexError):
        documents[NO_HIT]
    with pytest.raises(IndexError):
        np.array(documents)[np.array([0, NO_HIT])]
    scores, ids = np.array([[2.0, -np.inf], [3.0, 1.0]]), np.array([[1, NO_HIT], [0, 1]])
    assert hits(scores, ids) == [[(1, 2.0)], [(0, 3.0), (1, 1.0)]]


def test_lengths_neither_overflow_nor_vanish():
    """The square of 1e-30 is no float32, and the length would be 0."""
    x = np.array([[3e-30, 4e-30], [3e18, 4e18], [0, 0]], np.float32)
    np.testing.assert_allclose(lengths_of(x), [5e-30, 5e18, 0], rtol=1e-6)
    np.testing.assert_allclose(normalised(x), [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-6)


def test_the_longest_vectors_allowed_have_finite_scores():
    x = np.array([[LONGEST * 0.99]])
    assert np.isfinite(flat(x).search(-x, 1)[0]).all()


@pytest.mark.parametrize("n, width, numbers", [(10, 3, 9), (10, 100, 9), (0, 3, 9), (9, 3, 9)])
def test_blocks_cover_each_row_once(n, width, numbers):
    """Rows of three numbers, at most nine numbers at once: three rows; never less than one."""
    parts = list(blocks(n, width, numbers))
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    assert all(len(range(n)[part]) <= max(1, numbers // width) for part in parts)


def test_many_queries_are_searched_in_blocks(monkeypatch):
    x = clustered(0, 50, D)
    whole = flat(x).search(x, 5)
    monkeypatch.setattr(module, "blocks", lambda n, width: blocks(n, width, 120))
    for one, other in zip(whole, flat(x).search(x, 5)):
        np.testing.assert_allclose(one, other, atol=1e-6)


# --- laws of every kind -------------------------------------------------------------------------

WHOLE = arrays(np.int8, st.tuples(st.integers(20, 40), st.just(D)), elements=st.integers(-3, 3))
"""Vectors of a few whole numbers: their inner products are exact in whatever order."""


@our_kinds
@settings(max_examples=20, deadline=None)
@given(x=WHOLE, data=st.data())
def test_adding_in_parts_is_adding_at_once(make, x, data):
    """What was learnt is rounded to quarters, so that all sums are exact: a vector that lies
    between two codewords goes to the first, and not where rounding says."""
    cut = data.draw(st.integers(0, len(x)))
    at_once, parts = make(), make()
    for index in (at_once, parts):
        index.train(x)
        for name in index.LEARNT:
            setattr(index, name, np.round(4 * getattr(index, name)) / 4)
    ids = at_once.add(x, "a")
    assert np.concatenate([parts.add(x[:cut], "a"), parts.add(x[cut:], "a")]).tolist() == (
        ids.tolist()
    )  # fmt: skip
    for name, array in at_once.arrays().items():
        assert np.array_equal(array, parts.arrays()[name]), name
    for one, other in zip(at_once.search(x, 5), parts.search(x, 5)):
        assert np.array_equal(one, other)


@every_kind
@settings(max_examples=15, deadline=None)
@given(names=st.lists(st.sampled_from("abc"), min_size=40, max_size=40))
def test_what_is_removed_is_never_found(make, names):
    """The ids say which are gone; the others are still there, and may all be found where the kind
    looks at all. What is added later has new ids and is found."""
    index, x = filled(make, 40, names)
    gone = index.remove(names[0])
    assert gone.tolist() == [i for i, name in enumerate(names) if name == names[0]]
    assert len(index) == 40 - len(gone) and names[0] not in index.sources
    if len(index):
        found = index.search(x, 40)[1]
        assert found.shape == (40, len(index)) and not np.isin(found, gone).any()
        if index.kind in ("flat", "pq"):
            assert set(found[0].tolist()) == set(range(40)) - set(gone.tolist())
    new = index.add(x[gone], names[0])
    assert new.tolist() == list(range(40, 40 + len(gone)))
    assert np.isin(index.search(x[gone], len(index))[1], new).any()


@every_kind
def test_ids_and_scores_are_those_of_the_vectors(make):
    """Sorted, without repetition; whole vectors' scores are their inner products, and with as many
    hits as vectors FAISS's -1 would show."""
    index, x = filled(make)
    scores, ids = index.search(x[:9], 60)
    assert scores.dtype == np.float32 and ids.dtype == np.int64 and ids.shape == (9, 60)
    for q, row, names in zip(x, scores, ids):
        n = int((names != NO_HIT).sum())
        assert n and (names[:n] < 60).all() and (names[:n] >= 0).all()
        assert len(set(names[:n].tolist())) == n and (np.diff(row[:n]) <= 0).all()
        assert (row[n:] == -np.inf).all() and np.isfinite(row[:n]).all()
        if "pq" not in getattr(index, "of", index.kind):
            np.testing.assert_allclose(row[:n], x[names[:n]] @ q, atol=1e-5)


@every_kind
def test_the_same_generator_gives_the_same_index(make):
    one, other = filled(make)[0], filled(make)[0]
    for name, array in one.arrays().items():
        assert np.array_equal(array, other.arrays()[name]), name


@every_kind
def test_no_queries_have_no_hits(make):
    scores, ids = filled(make)[0].search(np.zeros((0, D)), 5)
    assert scores.shape == ids.shape == (0, 5)


@every_kind
def test_no_vectors_are_no_ids(make):
    index, x = filled(make)
    assert index.add(np.zeros((0, D)), []).tolist() == [] and len(index) == 60
    assert index.add(x[:1]).tolist() == [60]


def test_tensors_are_taken_and_the_callers_array_is_not_kept():
    x = torch.eye(3, requires_grad=True)
    index = FlatIndex(3)
    index.add(x)
    assert index.search(x, 1)[1].tolist() == [[0], [1], [2]]
    array = np.eye(3, dtype=np.float32)
    index.add(array)
    array[:] = 0
    assert index.search(np.eye(3), 2)[1].tolist() == [[0, 3], [1, 4], [2, 5]]


# --- sources ------------------------------------------------------------------------------------


def test_sources_come_and_go():
    """Ids are never given twice, or a citation would name another text."""
    index = FlatIndex(1)
    assert index.add([[1.0], [2.0]], ["a.md", "b.md"]).tolist() == [0, 1]
    assert index.add([[3.0]]).tolist() == [2] and index.sources == ["a.md", "b.md"]
    assert index.remove("b.md").tolist() == [1] and index.sources == ["a.md"]
    assert index.add([[4.0], [5.0]], "b.md").tolist() == [3, 4]
    assert index.search([[1.0]], 9)[1].tolist() == [[4, 3, 2, 0]]
    assert index.remove("b.md").tolist() == [3, 4] and len(index) == 2
    assert index.add([[6.0]]).tolist() == [5] and index.add([[7.0]]).tolist() == [6]


def test_an_unknown_source_is_named_with_those_that_are_there():
    index = flat([[1.0]])
    with pytest.raises(ValueError, match="source 'x'; the index has 0: none"):
        index.remove("x")
    index.add(np.zeros((6, 1)), list("abcdef"))
    with pytest.raises(ValueError, match=r"'x'; the index has 6: 'a', 'b', 'c', 'd', 'e', \.\.\."):
        index.remove("x")
    index.remove("a")
    with pytest.raises(ValueError, match="source 'a'"):
        index.remove("a")


# --- errors: before anything is stored ----------------------------------------------------------

NAN, INF = np.ones((5, D)), np.ones((5, D))
NAN[3, 2], INF[1, 0], INF[4, 1] = np.nan, np.inf, -np.inf
BAD = {
    "another width": (np.ones((5, D + 1)), r"shape \(5, 9\); this index takes \(n, 8\)"),
    "one vector": (np.ones(D), r"shape \(8,\); this index takes"),
    "NaN": (NAN, r"vector 3 holds NaN or infinity \(1 of 5"),
    "infinity": (INF, r"vector 1 holds NaN or infinity \(2 of 5"),
    "beyond float32": (np.full((5, D), 1e300), "vector 0 holds NaN or infinity"),
    "too long": (np.full((5, D), 1e19), r"vector 0 is longer than 1e\+19"),
}


@every_kind
@pytest.mark.parametrize("x, message", BAD.values(), ids=BAD)
def test_bad_vectors_are_refused_and_nothing_changes(make, x, message):
    index, good = filled(make, sources="a")
    before = index.search(good, 5)
    for call in (lambda: index.add(x, "b"), lambda: index.search(x, 5), lambda: make().train(x)):
        with pytest.raises(ValueError, match=message):
            call()
    assert len(index) == 60 and index.sources == ["a"] and index.next_id == 60
    for one, other in zip(before, index.search(good, 5)):
        assert np.array_equal(one, other)


@every_kind
def test_wrong_sources_are_refused_and_nothing_changes(make):
    index, x = filled(make)
    with pytest.raises(ValueError, match="2 sources for 3 vectors"):
        index.add(x[:3], ["a", "b"])
    with pytest.raises(ValueError, match="A source is a string"):
        index.add(x[:2], ["a", None])
    assert len(index) == 60 and index.sources == [] and index.add(x[:1]).tolist() == [60]


@every_kind
@pytest.mark.parametrize("k", [0, -1, 2.0, True, None])
def test_k_is_a_whole_number_from_1(make, k):
    index, x = filled(make)
    with pytest.raises(ValueError, match="k must be a whole number from 1"):
        index.search(x, k)
    assert index.search(x, np.int64(2))[1].shape == (60, 2)


@every_kind
def test_an_empty_index_says_so(make):
    index = make()
    x = clustered(0, 40, D)
    index.train(x)
    with pytest.raises(ValueError, match="The index is empty"):
        index.search(x, 1)
    index.add(x, "a")
    index.remove("a")
    with pytest.raises(ValueError, match="The index is empty"):
        index.search(x, 1)


@every_kind
def test_training_comes_first_and_not_later(make):
    index, x = make(), clustered(0, 40, D)
    if getattr(index, "of", index.kind) not in ("flat", "hnsw"):
        for call in (index.add, lambda x: index.search(x, 1)):
            with pytest.raises(ValueError, match="not trained"):
                call(x)
    index.train(x)
    index.train(x)
    index.add(x)
    with pytest.raises(ValueError, match="holds 40 vectors"):
        index.train(x)


@pytest.mark.parametrize(
    "kind, n, name",
    [("ivf", 3, "nlist = 4"), ("ivfpq", 3, "nlist = 4"), ("pq", 7, r"2\*\*nbits = 8"),
     ("ivfpq", 7, r"2\*\*nbits = 8")],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "faiss "])
def test_too_few_vectors_to_learn_of_are_refused(prefix, kind, n, name):
    """Four lists, and codebooks of eight words; one vector more is enough."""
    index, x = MAKERS[prefix + kind](), clustered(0, 8, D)
    with pytest.raises(ValueError, match=f"{n} vectors are too few to learn {name}"):
        index.train(x[:n])
    index.train(x[: n + 1] if kind != "ivfpq" else x)
    assert len(index.add(x)) == 8


@every_kind
def test_parameters_out_of_range_are_named_when_made_and_when_searched(make):
    index, x = filled(make)
    names = [name for name in index.parameters if name not in ("metric", "of")]
    for name in names:
        for value in (0, 1.5, "2"):
            other = index.parameters | {name: value}
            with pytest.raises(ValueError, match=f"{name} must be a whole number from 1"):
                type(index)(**other)
    with pytest.raises(ValueError, match="metric='l2': choose from ip, cosine"):
        type(index)(**index.parameters | {"metric": "l2"})
    for name in set(names) & {"nprobe", "efSearch"}:
        setattr(index, name, 0)
        with pytest.raises(ValueError, match=f"{name} must be"):
            index.search(x, 1)
