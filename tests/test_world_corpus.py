"""The corpus stream: deterministic, in its declared shares, packed without loss."""

import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.world.corpus import documents, pack, packed_rows, shard_documents, write_rows
from course_lib.world.documents import FIRST_MIX, KINDS, LAST_MIX, MIX


def test_the_same_seed_gives_the_same_documents_and_another_seed_others():
    first, again = (list(islice(documents(3), 50)) for _ in range(2))
    assert first == again
    assert first != list(islice(documents(4), 50))


def test_a_shard_does_not_depend_on_the_ones_before_it():
    stream = list(islice(documents(0), 2005))
    assert stream[2000:] == list(islice(shard_documents(0, 1), 5))


def test_shares_of_the_characters_are_those_of_the_mix():
    size = Counter()
    for d in islice(documents(1), 60_000):
        size[d.kind] += len(d.text)
    total = sum(size.values())
    assert sum(MIX.values()) == pytest.approx(1.0)
    for kind, share in MIX.items():
        assert size[kind] / total == pytest.approx(share, rel=0.15), kind


def test_the_last_mix_has_its_kinds_and_adds_up():
    kinds = {d.kind for d in islice(shard_documents(1, 0, "last"), 2000)}
    assert kinds == set(LAST_MIX) and sum(LAST_MIX.values()) == pytest.approx(1.0)


def test_the_first_mix_has_its_own_kinds_and_shares():
    size = Counter()
    for d in islice(shard_documents(1, 0, "first"), 2000):
        size[d.kind] += len(d.text)
    assert set(size) == set(FIRST_MIX) and sum(FIRST_MIX.values()) == pytest.approx(1.0)
    share = FIRST_MIX["repetitions"]
    assert size["repetitions"] / sum(size.values()) == pytest.approx(share, rel=0.1)


def test_every_word_of_a_repetition_comes_at_least_twice():
    """That is what makes it predictable: only nonsense of two syllables may coincide with more."""
    rng = random.Random(0)
    for _ in range(300):
        words = Counter(KINDS["repetitions"](rng).replace(",", " ").replace(";", " ")
                        .replace(".", " ").split())  # fmt: skip
        assert min(words.values()) >= 2


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_document_varies(kind):
    rng = random.Random(0)
    texts = [KINDS[kind](rng) for _ in range(200)]
    assert len(set(texts)) > 150
    assert all(t and t == t.strip() and "{" not in t for t in texts)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), max_size=40),
    st.integers(2, 16),
)
def test_packing_keeps_every_document_whole(docs, row_length):
    """Splitting the rows at the end mark gives back the documents (cut at the row length)."""
    rows = pack(docs, row_length, end_id=0)
    found = Counter()
    for row in rows.tolist():
        parts, part = [], []
        for token in [*row, 0]:
            if token:
                part.append(token)
            elif part:
                parts.append(tuple(part))
                part = []
        found.update(parts)
    assert found == Counter(tuple(d[:row_length]) for d in docs)


def test_packing_wastes_little():
    """Documents leave under 1 % of the places free (Ding et al., 2024, report about 0.01 %)."""
    lengths = [max(1, len(d.text) // 3) for d in islice(documents(0), 2000)]
    rows = pack([[1] * n for n in lengths], 256, end_id=0)
    used = sum(min(n + 1, 256) for n in lengths)
    assert used / rows.size > 0.99


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    from course_lib.world.tokenizer import train_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer((d.text for d in islice(documents(0), 300)), 600).save(str(path))
    return path


def test_rows_do_not_depend_on_the_number_of_processes(tokenizer_path):
    one, two = (list(islice(packed_rows(0, tokenizer_path, 64, p), 3)) for p in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_streams_may_alternate(tokenizer_path, tmp_path):
    """Two streams with other tokenizers, read by turns, give what each gives alone. (The tokenizer
    of the last that began was everybody's: the first stream's second shard changed.)"""
    from course_lib.world.tokenizer import train_tokenizer

    other = tmp_path / "tokenizer.json"
    train_tokenizer((d.text for d in islice(documents(5), 100)), 400).save(str(other))
    arguments = (0, tokenizer_path, 64, 1), (1, other, 32, 1)
    alone = [list(islice(packed_rows(*given), 2)) for given in arguments]
    first, second = (packed_rows(*given) for given in arguments)
    mixed = [[next(first)], [next(second)]]
    mixed[0].append(next(first))
    mixed[1].append(next(second))
    assert alone[0][1].max() >= 400 > alone[1][1].max()
    for a, b in zip(alone[0] + alone[1], mixed[0] + mixed[1], strict=True):
        assert np.array_equal(a, b)


def test_a_stopped_writing_leaves_no_corpus_behind(tokenizer_path, tmp_path, monkeypatch):
    """The file appears only when it is complete."""
    import course_lib.world.corpus as corpus

    def broken(*args):
        yield np.zeros((4, 64), dtype=np.uint16)
        raise KeyboardInterrupt

    path = tmp_path / "rows.npy"
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "packed_rows", broken)
        with pytest.raises(KeyboardInterrupt):
            write_rows(path, 64 * 100, 0, tokenizer_path, 64)
        assert not path.exists()
    rows = write_rows(path, 64 * 100, 0, tokenizer_path, 64, processes=1)
    assert rows.shape == (100, 64) and rows.max() < 600
