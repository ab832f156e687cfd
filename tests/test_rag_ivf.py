"""Inverted lists: what is read and what is missed, by hand; all lists read are the flat index."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rag_vectors import clustered

from course_lib.rag.index import NO_HIT, FlatIndex
from course_lib.rag.ivf import IVFIndex, IVFPQIndex
from course_lib.rag.pq import PQIndex, decode

X = np.array([[1, 0], [0.7, 0.8]], np.float32)
Q = np.array([[0.8, 0.7]], np.float32)
"""With centroids (1, 0) and (0, 1) the first vector is in list 0, the second, whose products are .7
and .8, in list 1. The query is nearer to list 0; its products are .8 and .56 + .56 = 1.12."""


def by_hand(kind=IVFIndex, **parameters):
    index = kind(2, 2, **parameters)
    index.centroids = np.eye(2, dtype=np.float32)
    return index


def test_one_list_read_misses_the_nearest_vector_and_two_find_it():
    """And where one list has fewer than k, the place is left empty."""
    index = by_hand()
    index.add(X)
    assert index.list_of.tolist() == [0, 1] and index.starts.tolist() == [0, 1, 2]
    scores, ids = index.search(Q, 2)
    assert ids.tolist() == [[0, NO_HIT]] and scores[0, 1] == -np.inf
    assert scores[0, 0] == pytest.approx(0.8)
    for index.nprobe in (2, 9):
        scores, ids = index.search(Q, 2)
        assert ids.tolist() == [[1, 0]]
        np.testing.assert_allclose(scores, [[1.12, 0.8]], atol=1e-6)


def test_residuals_are_coded_by_hand():
    """The residuals are (0, 0) and (.7, -.2). Of the codewords 0 and .75, -.25 and 0 they take
    0 | 0 and .75 | -.25: the second vector is decoded as (.75, .75), and its score 1.5 · .75 =
    1.125; the first is exact. Codes of the vectors themselves would decode (.75, 0)."""
    index = by_hand(IVFPQIndex, m=2, nbits=1, nprobe=2)
    index.codebooks = np.array([[[0], [0.75]], [[-0.25], [0]]], np.float32)
    index.add(X)
    assert index.codes.tolist() == [[0, 1], [1, 0]]
    scores, ids = index.search(Q, 2)
    assert ids.tolist() == [[1, 0]]
    np.testing.assert_allclose(scores, [[1.125, 0.8]], atol=1e-6)
    index.nprobe = 1
    assert index.search(Q, 2)[1].tolist() == [[0, NO_HIT]]


def test_an_empty_list_has_no_hits():
    index = by_hand()
    index.add(X[:1])
    scores, ids = index.search(np.array([[0, 1], [1, 0]]), 1)
    assert ids.tolist() == [[NO_HIT], [0]] and scores[0, 0] == -np.inf


WHOLE = arrays(np.int8, st.tuples(st.integers(5, 40), st.just(4)), elements=st.integers(-4, 4))


@settings(max_examples=30, deadline=None)
@given(x=WHOLE, k=st.integers(1, 50), seed=st.integers(0, 9))
def test_all_lists_read_are_the_flat_index(x, k, seed):
    """To the letter, ties too: sums of whole numbers are exact."""
    index = IVFIndex(4, 5, 5, generator=torch.Generator().manual_seed(seed))
    flat = FlatIndex(4)
    index.train(x)
    index.add(x[:3]), flat.add(x[:3])
    index.add(x[3:], "b"), flat.add(x[3:], "b")
    for one, other in zip(index.search(x, k), flat.search(x, k)):
        assert np.array_equal(one, other)
    index.remove("b"), flat.remove("b")
    for one, other in zip(index.search(x, k), flat.search(x, k)):
        assert np.array_equal(one, other)


@settings(max_examples=30, deadline=None)
@given(x=WHOLE, names=st.lists(st.sampled_from("abc"), min_size=40, max_size=40))
def test_lists_hold_each_vector_once_in_order(x, names):
    """Also after a removal: rows by list, in a list by age, each by its nearest centroid."""
    index = IVFIndex(4, 5)
    index.train(x)
    index.add(x[:4], names[:4])
    index.add(x[4:], names[4 : len(x)])
    for left in (set(range(len(x))), None):
        if left is None:
            left = set(range(len(x))) - set(index.remove(names[0]).tolist())
        assert set(index.ids.tolist()) == left and index.starts[0] == 0
        assert index.starts[-1] == len(index) == len(left) and (np.diff(index.starts) >= 0).all()
        for number in range(5):
            rows = slice(index.starts[number], index.starts[number + 1])
            assert (index.list_of[rows] == number).all()
            assert (np.diff(index.ids[rows]) > 0).all()
        assert np.array_equal(index.vectors, x[index.ids])


def test_more_lists_read_find_more():
    x = clustered(0, 2000, 16, clusters=30)
    index, flat = IVFIndex(16, 25), FlatIndex(16)
    index.train(x)
    index.add(x), flat.add(x)
    truth = flat.search(x[:100], 10)[1]
    found = []
    for index.nprobe in (1, 2, 5, 25):
        ids = index.search(x[:100], 10)[1]
        found.append(np.mean([np.isin(a, b).mean() for a, b in zip(truth, ids)]))
    assert found == sorted(found) and found[0] < 0.8 and found[-1] == 1


def test_residuals_lose_less_than_vectors():
    """The same 4 · 4 bits a vector: of narrow clusters the residuals are small."""
    x = clustered(0, 2000, 8, clusters=20, noise=0.2)
    plain, lists = PQIndex(8, 4, 4), IVFPQIndex(8, 20, 4, 4)
    loss = []
    for index in (plain, lists):
        index.train(x)
        index.add(x)
        base = lists.centroids[lists.list_of] if index is lists else 0
        decoded = base + decode(index.codes, index.codebooks)
        loss.append(((x[index.ids] - decoded) ** 2).sum(1).mean())
    assert loss[1] < 0.7 * loss[0]


@pytest.mark.parametrize(
    "arguments, message",
    [((10, 4, 4), "cannot be cut into m = 4"), ((8, 4, 4, 9), "nbits = 9")],
)
def test_what_cannot_be_cut_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        IVFPQIndex(*arguments)
