"""Files that are written whole or not at all; text is always UTF-8."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to; the file there takes the place of ``path`` when the block ends well.

    So at every moment the old file or the new one is there, whole. For what wants a path of its
    own, streams or maps memory: ``torch.save``, safetensors, NumPy. If the block raises, the old
    file is untouched and nothing else is left; a process that is killed leaves a ``.part`` too.

    Raises:
        OSError: e.g. a full disk; the old file is untouched.

    Example: several files that belong together are all written before the first is replaced; the
    innermost goes first.
        >>> with replacing(config) as new_config, replacing(weights) as new_weights: ...
        ...     # doctest: +SKIP
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name without its content
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file by these bytes; see ``replacing``."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Replace a file by this text, as UTF-8 with the line ends that it has."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, content: object) -> None:
    """Replace a file by this content: indented by 1, letters as they are, a line end at the end."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_text(path: str | Path) -> str:
    """A UTF-8 text, whatever the locale says; any line end is read as ``\\n``."""
    return Path(path).read_text(encoding="utf-8")
