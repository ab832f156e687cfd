"""Files that are written whole or not at all; text is always UTF-8."""

import os
from pathlib import Path


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file so that at every moment the old or the new one is there, whole.

    Raises:
        OSError: e.g. a full disk; the old file is untouched.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """The same for a text, as UTF-8 with the line ends that it has."""
    write_bytes(path, text.encode("utf-8"))


def read_text(path: str | Path) -> str:
    """A UTF-8 text, whatever the locale says."""
    return Path(path).read_text(encoding="utf-8")
