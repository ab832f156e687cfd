"""Largest differences from a library, measured in tests and kept for the book's table of them.

Each ``Parity`` that ends well leaves one line of JSON in ``build/parity``: piece, counterpart,
configurations, difference, tolerance. A run that fails leaves none.
"""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from course_lib.files import write_text

FOLDER = Path(__file__).resolve().parents[1] / "build" / "parity"


class Parity:
    """The differences of one piece from its counterpart, over all configurations tried.

    >>> with Parity("GPT-2", "transformers.GPT2LMHeadModel", 1e-5) as parity:
    ...     for config in configs:
    ...         parity.tried()
    ...         parity.compare(ours(config), theirs(config))
    """

    def __init__(self, piece: str, counterpart: str, tolerance: float, folder: Path = FOLDER):
        self.row = {"piece": piece, "counterpart": counterpart, "configurations": 0,
                    "difference": 0.0, "tolerance": tolerance}  # fmt: skip
        slug = re.sub(r"[^a-z0-9]+", "_", f"{piece} {counterpart}".lower()).strip("_")
        self.path = folder / f"{slug}.jsonl"

    def __enter__(self) -> "Parity":
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, error, *_) -> None:
        if error is None:
            assert self.row["configurations"] > 0, "nothing was compared"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(self.row) + "\n")

    def tried(self) -> None:
        """Count one more configuration."""
        self.row["configurations"] += 1

    def compare(self, ours: Tensor, theirs: Tensor) -> None:
        """Fail where the two differ by more than the tolerance, in shape, or by nan."""
        tolerance = self.row["tolerance"]
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
        if ours.numel():
            difference = (ours - theirs).abs().max().item()
            self.row["difference"] = max(self.row["difference"], difference)
