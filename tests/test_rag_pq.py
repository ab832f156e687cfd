"""Product quantisation: codes, tables and scores by hand; what is lost and what is not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rag_vectors import clustered

from course_lib.rag.index import FlatIndex
from course_lib.rag.pq import (
    PQIndex,
    cut,
    decode,
    encode,
    inner_product_tables,
    learn_codebooks,
    look_up,
)

BOOKS = np.array([[[0, 0], [1, 2]], [[-1, 0], [3, 3]]], np.float32)
"""Two parts of two numbers, two codewords each."""


def test_parts_are_cut_in_order():
    x = np.arange(8).reshape(2, 4)
    assert cut(x, 2).tolist() == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert cut(x[:0], 2).shape == (2, 0, 2)


def test_codes_by_hand():
    """(1, 1 | 0, 0): the first part is 2 from (0, 0) and 1 from (1, 2), squared; the second is 1
    from (-1, 0) and 18 from (3, 3). (-9, 0) goes to (0, 0), 81 away, not to (1, 2), 104 away."""
    x = np.array([[1, 1, 0, 0], [-9, 0, 2, 2]], np.float32)
    codes = encode(x, BOOKS)
    assert codes.tolist() == [[1, 0], [0, 1]] and codes.dtype == np.uint8
    assert decode(codes, BOOKS).tolist() == [[1, 2, -1, 0], [0, 0, 3, 3]]


def test_scores_are_sums_of_table_entries():
    """q = (1, 2 | 3, 4): with the codewords 0, 5 and -3, 21. (1, 0) gives 5 - 3, (0, 1) 0 + 21."""
    q = np.array([1, 2, 3, 4], np.float32)
    tables = inner_product_tables(q, BOOKS)
    assert tables.tolist() == [[0, 5], [-3, 21]]
    assert look_up(tables, np.array([[1, 0], [0, 1]], np.uint8)).tolist() == [2, 21]
    index = PQIndex(4, 2, 1)
    index.codebooks = BOOKS
    index.add([[1, 1, 0, 0], [-9, 0, 2, 2]])
    scores, ids = index.search(q[None], 5)
    assert ids.tolist() == [[1, 0]] and scores.tolist() == [[21, 2]]


@settings(max_examples=30, deadline=None)
@given(
    codes=arrays(np.uint8, (15, 3), elements=st.integers(0, 3)),
    books=arrays(np.int8, (3, 4, 2), elements=st.integers(-9, 9)),
    q=arrays(np.int8, (2, 6), elements=st.integers(-9, 9)),
)
def test_looking_up_is_the_product_with_what_is_decoded(codes, books, q):
    """The hits are those of the flat index over the decoded vectors, to the letter: whole numbers
    have exact sums."""
    index, flat = PQIndex(6, 3, 2), FlatIndex(6)
    index.codebooks = books.astype(np.float32)
    flat.add(decode(codes, index.codebooks))
    index.add(flat.vectors)
    for one, other in zip(index.search(q, 6), flat.search(q, 6)):
        assert np.array_equal(one, other)


def test_nothing_is_lost_where_each_part_has_few_values():
    """Corners of a cube: each part is 0 or 1, which one bit a part holds, after training on all."""
    x = np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1).T.astype(np.float32)
    index = PQIndex(4, 4, 1)
    index.train(x)
    index.add(x)
    assert np.array_equal(decode(index.codes, index.codebooks), x)


def test_more_bits_and_more_parts_lose_less():
    x = clustered(0, 600, 8)

    def loss(m: int, nbits: int) -> float:
        books = learn_codebooks(x, m, nbits, torch.Generator().manual_seed(0))
        assert books.shape == (m, 2**nbits, 8 // m) and books.dtype == np.float32
        return float(((x - decode(encode(x, books), books)) ** 2).sum(1).mean())

    assert loss(2, 6) < 0.8 * loss(2, 3) and loss(4, 3) < 0.8 * loss(2, 3) < 0.9


def test_a_code_takes_a_byte_a_part():
    index = PQIndex(8, 4, 5)
    index.train(x := clustered(0, 100, 8))
    index.add(x)
    assert index.codes.shape == (100, 4) and index.codes.nbytes == 400
    assert index.nbytes == 400 + 4 * 32 * 2 * 4 + 100 * (8 + 4)  # codebooks, ids and sources


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((10, 4), r"d = 10 numbers cannot be cut into m = 4 .* \(1, 2, 5, 10\)"),
        ((8, 16), "cannot be cut"),
        ((8, 4, 9), "nbits = 9: a code is a byte here, so at most 8"),
    ],
)
def test_what_cannot_be_cut_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PQIndex(*arguments)
