"""Indexes on the disk: bit for bit, whole or refused, and never for another embedder."""

import json
import stat

import numpy as np
import pytest
from rag_vectors import OWN, clustered
from safetensors import safe_open
from safetensors.numpy import save_file

from course_lib.rag import index_files
from course_lib.rag.faiss_index import FaissIndex
from course_lib.rag.index import FlatIndex
from course_lib.rag.index_files import checksum, load_index, save_index

D = 8
MAKERS = {name: lambda c=c, p=p: c(D, **p, metric="cosine") for name, (c, p) in OWN.items()} | {
    f"faiss {name}": lambda name=name, p=p: FaissIndex(D, name, **p) for name, (_, p) in OWN.items()
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
EMBEDDER, CONTENT = "encoder-3f2a", {"chunks": ["café\r\n", "강화 학습 🙂"], "k": 3}


@pytest.fixture
def small(tmp_path):
    """An index of three vectors, and its file."""
    index, path = FlatIndex(2), tmp_path / "town.index"
    index.add(np.eye(3, 2), ["a", "b", "b"])
    save_index(index, path, EMBEDDER)
    return index, path


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- there and back -----------------------------------------------------------------------------


@every_kind
def test_an_index_comes_back_bit_for_bit_and_goes_on_as_it_would_have(make, tmp_path):
    """After a removal, with fields changed since it was made; what is added later gets the same
    ids, levels and places. FAISS's file of a graph has no generator: the levels of what is added
    later are others."""
    x, index = clustered(0, 60, D), make()
    index.train(x)
    index.add(x[:40], [str(i % 3) for i in range(40)])
    index.remove("1")
    if hasattr(index, "nprobe"):
        index.nprobe = 3
    save_index(index, tmp_path / "x", EMBEDDER, CONTENT)
    again, content = load_index(tmp_path / "x", EMBEDDER)
    assert type(again) is type(index) and again.parameters == index.parameters
    assert content == CONTENT and names(tmp_path) == ["x"]
    steps = [lambda i: None, lambda i: i.add(x[40:], "1"), lambda i: i.remove("0")]
    for step in steps[:1] if getattr(index, "of", None) == "hnsw" else steps:
        one, other = step(index), step(again)
        assert one is None or np.array_equal(one, other)
        assert again.sources == index.sources and len(again) == len(index)
        mine, yours = index.arrays(), again.arrays()
        assert mine.keys() == yours.keys()
        for name in mine:
            assert mine[name].dtype == yours[name].dtype, name
            assert np.array_equal(mine[name], yours[name]), name
        for one, other in zip(index.search(x, 7), again.search(x, 7)):
            assert np.array_equal(one, other)


@every_kind
@pytest.mark.parametrize("trained", [False, True])
def test_an_empty_index_comes_back(make, trained, tmp_path):
    x, index = clustered(0, 60, D), make()
    if trained:
        index.train(x)
    save_index(index, tmp_path / "x", EMBEDDER)
    again, content = load_index(tmp_path / "x", EMBEDDER)
    assert content is None and len(again) == 0
    with pytest.raises(ValueError, match="empty" if trained else "empty|not trained"):
        again.search(x, 1)
    again.train(x)
    assert again.add(x).tolist() == list(range(60))


def test_the_header_says_what_it_is_and_nothing_is_pickled(small):
    """Safetensors and JSON: anyone can read it, and reading runs nothing."""
    _, path = small
    with safe_open(path, "numpy") as file:
        fields = json.loads(file.metadata()["index"])
        assert set(file.keys()) == {"ids", "source_of", "vectors", "texts"}
        assert json.loads(file.get_tensor("texts").tobytes()) == [["a", "b"], None]
    assert fields == {"format": 1, "kind": "flat", "parameters": {"d": 2, "metric": "ip"},
                      "embedder": EMBEDDER, "next_id": 3}  # fmt: skip


def test_others_may_read_the_file(small, tmp_path):
    """As any file that one writes; safetensors would keep it to its owner."""
    _, path = small
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, tmp_path / "plain")]
    assert modes[0] == modes[1]


@every_kind
def test_whole_numbers_of_numpy_are_parameters_too(make, tmp_path):
    index = make()
    numbers = {name: np.int64(value) if isinstance(value, int) else value
               for name, value in index.parameters.items()}  # fmt: skip
    index = type(index)(**numbers)
    x = clustered(0, 60, D)
    index.train(x)
    index.add(x)
    save_index(index, tmp_path / "x", EMBEDDER)
    assert load_index(tmp_path / "x", EMBEDDER)[0].parameters == index.parameters == numbers


# --- refused ------------------------------------------------------------------------------------


def test_another_embedder_is_refused_with_both_names(small):
    """Even one of the same width, whose hits would look plausible."""
    with pytest.raises(ValueError, match="embedder 'encoder-3f2a', and the queries are of 'other'"):
        load_index(small[1], "other")
    with pytest.raises(ValueError, match="Say which embedder"):
        save_index(small[0], small[1], "")


def test_a_file_that_is_cut_off_is_refused(small):
    _, path = small
    data = path.read_bytes()
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(ValueError, match="is no whole index .*make it again"):
            load_index(path, EMBEDDER)
    path.write_bytes(data)
    load_index(path, EMBEDDER)


def test_a_bit_that_changed_is_seen_wherever_it_is(small):
    """In the header and in the arrays; none leads to another error or to an index."""
    _, path = small
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :])
        with pytest.raises(ValueError, match="is no whole index"):
            load_index(path, EMBEDDER)


@pytest.mark.parametrize("content", [b"", b"# A chapter\n", bytes(range(256)) * 9])
def test_what_is_no_index_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="is no whole index"):
        load_index(tmp_path / "x", EMBEDDER)


def test_other_safetensors_and_missing_files_are_refused(tmp_path):
    save_file({"w": np.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is no whole index .it has no 'index'"):
        load_index(tmp_path / "model.safetensors", EMBEDDER)
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="There is no index at"):
            load_index(path, EMBEDDER)


@pytest.mark.parametrize("change", [{"format": 2}, {"kind": "tree"}])
def test_a_later_format_is_refused_by_name(small, change):
    """Whole, with the right checksum, and of a version that this one does not know."""
    _, path = small
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = json.dumps(json.loads(file.metadata()["index"]) | change)
    save_file(arrays, path, metadata={"index": text, "sha256": checksum(text, arrays)})
    with pytest.raises(ValueError, match="this version reads format 1 with flat, ivf"):
        load_index(path, EMBEDDER)


# --- the old index stays ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_index(small, monkeypatch, error):
    """Half of the new file is there when it happens; afterwards the old one is, alone."""
    index, path = small
    right = index_files.save_file

    def half(arrays, part, metadata):
        right(arrays, part, metadata)
        part.write_bytes(part.read_bytes()[:100])
        raise error

    monkeypatch.setattr(index_files, "save_file", half)
    index.add(np.eye(2), "c")
    with pytest.raises(type(error)):
        save_index(index, path, EMBEDDER)
    assert names(path.parent) == [path.name]
    assert load_index(path, EMBEDDER)[0].sources == ["a", "b"]
    monkeypatch.undo()
    save_index(index, path, EMBEDDER)
    assert load_index(path, EMBEDDER)[0].sources == ["a", "b", "c"]


def test_content_that_is_no_json_leaves_the_old_index(small):
    index, path = small
    with pytest.raises(TypeError):
        save_index(index, path, EMBEDDER, content={1, 2})
    assert load_index(path, EMBEDDER)[1] is None and names(path.parent) == [path.name]


def test_a_folder_that_is_not_there_is_made(small, tmp_path):
    save_index(small[0], tmp_path / "new" / "folder" / "x", EMBEDDER)
    assert len(load_index(str(tmp_path / "new" / "folder" / "x"), EMBEDDER)[0]) == 3
