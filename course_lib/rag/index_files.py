"""An index on the disk: one file of safetensors, whose header says what it is, of which embedder.

One file, so that it is replaced as a whole: at every moment the old index or the new one is there.
The header holds JSON with the index's kind and parameters and the embedding model's name, and a
SHA-256 of this and of every array. What may be long, sources and the caller's own content, is an
array too: JSON as UTF-8.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from course_lib.files import replacing
from course_lib.rag.faiss_index import OWN, FaissIndex
from course_lib.rag.index import Index

KINDS = OWN | {FaissIndex.kind: FaissIndex}
FORMAT = 1
TEXTS = "texts"
"""The array with the sources and the caller's content."""


def checksum(description: str, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of the text, and of the names, types, shapes and bytes of the arrays."""
    total = hashlib.sha256(description.encode())
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def save_index(index: Index, path: str | Path, embedder: str, content: object = None) -> None:
    """Write an index, whole or not at all.

    Args:
        path: of the file; what is there is replaced.
        embedder: name of the model that made the vectors, as ``load_index`` will be asked for it.
            A name that changes with the weights also tells a model that was trained since.
        content: JSON of the caller's that belongs to the vectors, e.g. the texts of the chunks. In
            the same file it can never be that of another index.

    Raises:
        ValueError: no name of an embedder.
        OSError: e.g. a full disk; the old file is untouched.
    """
    if not embedder:
        raise ValueError("Say which embedder made the vectors: a query must be of the same.")
    description = json.dumps({
        "format": FORMAT, "kind": index.kind, "parameters": index.parameters,
        "embedder": embedder, "next_id": index.next_id,
    }, ensure_ascii=False)  # fmt: skip
    texts = json.dumps([index.source_names, content], ensure_ascii=False).encode()
    arrays = index.arrays() | {TEXTS: np.frombuffer(texts, np.uint8)}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        header = {"index": description, "sha256": checksum(description, arrays)}
        part.touch()
        mode = part.stat().st_mode
        save_file(arrays, part, metadata=header)
        part.chmod(mode)  # safetensors hides its files from other users


def load_index(path: str | Path, embedder: str) -> tuple[Index, object]:
    """Read an index for queries of this embedder.

    Returns:
        The index, bit for bit as it was, and the content that was saved with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is damaged or half written, or no index; vectors of another
            embedder (both are named).
        ImportError: an index of FAISS, which is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no index at {path}: make one first.")
    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = header["index"]
        if header["sha256"] != checksum(description, arrays):
            raise ValueError("its checksum is another")
        fields = json.loads(description)
    except (SafetensorError, KeyError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} is no whole index ({reason}): make it again from the documents."
        ) from None
    if fields["format"] != FORMAT or fields["kind"] not in KINDS:
        raise ValueError(
            f"{path} has format {fields['format']} and kind {fields['kind']!r}; this version reads "
            f"format {FORMAT} with {', '.join(KINDS)}. Make it again, or use a newer version."
        )
    if fields["embedder"] != embedder:
        raise ValueError(
            f"{path} holds vectors of the embedder {fields['embedder']!r}, and the queries are of "
            f"{embedder!r}: scores between the two mean nothing. Ask with the first, or make the "
            "index again with the second."
        )
    index = KINDS[fields["kind"]](**fields["parameters"])
    index.source_names, content = json.loads(arrays.pop(TEXTS).tobytes())
    index.next_id = fields["next_id"]
    index.restore(arrays)
    return index, content
