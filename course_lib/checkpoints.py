"""What a run leaves on the disk: checkpoints from which it goes on, and a CSV of its metrics."""

import csv
import io
import os
import random
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from course_lib.files import replacing, write_text


class MetricsFile:
    """A CSV that always equals the rows it was given; a new column rewrites it."""

    def __init__(self, path: Path | None, rows: list[dict]):
        self.path, self.rows = path, rows
        self.columns: list[str] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._rewrite()

    def _rewrite(self) -> None:
        for row in self.rows:
            self.columns += [name for name in row if name not in self.columns]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def append(self, row: dict) -> None:
        self.rows.append(row)
        if self.path is None:
            return
        if not set(row) <= set(self.columns):
            self._rewrite()
            return
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)


def plain(state: object) -> object:
    """The same with numbers of NumPy as Python's, which ``weights_only`` reading refuses."""
    if isinstance(state, np.generic):
        return state.item()
    if type(state) is dict:
        return {plain(key): plain(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(plain(value) for value in state)
    return state


def check_readable(state: object) -> None:
    """Refuse what a checkpoint could store and not give back.

    Raises:
        ValueError: anything but numbers, strings, tensors, and lists, tuples and dicts of them.
    """
    file = io.BytesIO()
    torch.save(plain(state), file)
    file.seek(0)
    _read(file)


def _read(file, **settings) -> dict:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, **settings)
    except Exception as error:  # torch raises many kinds, and half a page of advice
        reason = str(error).split("WeightsUnpickler error: ")[-1].split(" was not an allowed")[0]
        raise ValueError(
            f"This state could be written to a checkpoint and not be read again ({reason}). Let "
            "state_dict() give numbers, strings, tensors, and lists and dicts of them."
        ) from error


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write ``checkpoint.pt`` so that at every moment a whole one exists.

    The new file is written under another name, synced and read once; then the old one becomes
    ``checkpoint.previous.pt``, and the new one takes its place.

    Raises:
        OSError: e.g. a full disk; the old checkpoint is untouched.
        ValueError: see ``check_readable``; the old checkpoint is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    current = folder / "checkpoint.pt"
    try:
        with replacing(current) as part:
            with open(part, "wb") as file:
                torch.save(plain(state), file)
            _read(part, mmap=True)
            if current.exists():
                os.replace(current, folder / "checkpoint.previous.pt")
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"The checkpoint could not be written to {folder} ({error}). The one before is still "
            "there: make room and start again, training goes on from it."
        ) from error
    for left in folder.glob("checkpoint.pt.*.part"):  # of runs that were killed while writing
        left.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> dict | None:
    """The newest readable checkpoint of the folder, or None when there is none.

    Raises:
        ValueError: there are checkpoints, and none can be read.
    """
    paths = [folder / "checkpoint.pt", folder / "checkpoint.previous.pt"]
    errors = []
    for path in (p for p in paths if p.exists()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            errors.append(f"{path.name}: {error}")
            warnings.warn(f"{path} cannot be read; trying the one before.", stacklevel=2)
    if errors:
        raise ValueError(
            f"No checkpoint of {folder} can be read ({'; '.join(errors)}). Remove the folder to "
            "start from the beginning."
        )
    return None


def rng_state() -> dict:
    """The state of Python's, NumPy's and torch's own generators."""
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(), "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), *rest],
    }  # fmt: skip
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(states: Sequence[dict] | dict, rank: int = 0) -> None:
    """Put back what ``rng_state`` gave to process ``rank``; one dict alone is every process's."""
    state = states if isinstance(states, dict) else states[rank % len(states)]
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "numpy" in state:  # not in the first version's checkpoints
        np.random.set_state(tuple(state["numpy"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
