"""Claims: sentences that a notebook proves by measuring, and the ledger that collects them.

A notebook begins with ``begin(chapter, section)`` and states each claim with ``claim``. Where
``COURSE_LEDGER`` names a file (the tool that executes the book's notebooks sets it), each claim is
entered there, one entry a chapter and text; the book shows it as a page. Tests and readers run the
same notebooks and write nothing.
"""

import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from course_lib.files import read_text, write_text
from course_lib.measuring import mean_interval
from course_lib.studies.stored import PerSeed

LEVEL = 0.99
"""Of the interval outside of which a bound must lie."""
_current = {"chapter": "", "section": ""}


def begin(chapter: str, section: str) -> None:
    """Say which chapter speaks and which section of the lecture it speaks of.

    May be called again for another section of the lecture.

    Args:
        chapter: the notebook's name, e.g. ``"03_decoder_only"``.
        section: the lecture's heading.
    """
    _current.update(chapter=chapter, section=section)


def claim(
    text: str,
    measured: bool | PerSeed | Sequence[float],
    evidence: str | dict = "",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    """Assert a sentence, print it, and enter it in the ledger.

    Args:
        text: one sentence that can be true or false.
        measured: one number a seed (of a study: ``results.of``, ``results.gap``) with a bound; or,
            for exact statements (shapes, equalities, counts), whether it holds.
        evidence: what was measured; required where nothing else says it.
        at_least, at_most: bounds on the mean. The claim holds when each lies outside the 99 %
            t-interval of the mean, on its side.

    Raises:
        AssertionError: it does not hold.
        ValueError: no chapter was begun, no evidence, numbers without a bound, a bound without
            numbers.
    """
    if not _current["chapter"]:
        raise ValueError("Call course_lib.claims.begin(chapter, section) before the first claim.")
    if isinstance(evidence, dict):
        evidence = ", ".join(f"{name} {value}" for name, value in evidence.items())
    entry = {**_current, "text": text, "evidence": evidence}
    bounds = {"at_least": at_least, "at_most": at_most}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    if isinstance(measured, PerSeed | Sequence):
        if not bounds:
            raise ValueError(f"The claim {text!r} has numbers and no bound: give at_least/at_most.")
        mean, low, high = mean_interval(list(measured), LEVEL)
        holds = low > bounds.get("at_least", -float("inf")) and high < bounds.get(
            "at_most", float("inf")
        )
        entry |= {"mean": mean, "low": low, "high": high, "seeds": len(measured), **bounds,
                  "study": getattr(measured, "study", "")}  # fmt: skip
    else:
        if bounds:
            raise ValueError(f"The claim {text!r} has a bound: give one number a seed with it.")
        if not evidence:
            raise ValueError(f"The claim {text!r} comes without evidence: say what was measured.")
        holds = bool(measured)
    if not holds:
        raise AssertionError(f"claim fails: {text} ({summary(entry)})")
    if ledger := os.environ.get("COURSE_LEDGER"):
        _enter(Path(ledger), entry)
    for line in (f"claim holds: {text}", summary(entry)):
        print(textwrap.fill(line, 79, subsequent_indent="  "))


def summary(entry: dict) -> str:
    """The figures of an entry in one line.

    Example:
        >>> summary({"mean": 0.31, "low": 0.2, "high": 0.42, "seeds": 8, "at_least": 0.1,
        ...          "study": "forgetting", "evidence": ""})
        '0.31 (99 % interval 0.20 to 0.42, 8 seeds), at least 0.1 (study forgetting)'
    """
    parts = [measured(entry), bound(entry)]
    text = ", ".join(part for part in parts if part)
    return text + (f" (study {entry['study']})" if entry.get("study") else "")


def measured(entry: dict) -> str:
    """What an entry's numbers say, with the evidence that was given in words."""
    if "mean" not in entry:
        return entry["evidence"]
    mean, low, high = (_short(entry[name]) for name in ("mean", "low", "high"))
    text = f"{mean} (99 % interval {low} to {high}, {entry['seeds']} seeds)"
    return f"{entry['evidence']}: {text}" if entry["evidence"] else text


def bound(entry: dict) -> str:
    """The bound of an entry; empty for exact statements."""
    return ", ".join(f"{name.replace('_', ' ')} {entry[name]:g}"
                     for name in ("at_least", "at_most") if name in entry)  # fmt: skip


def _short(number: float) -> str:
    """Two decimals, or two digits where they would all be zero."""
    return f"{number:.2f}" if abs(number) >= 0.095 or number == 0 else f"{number:.2g}"


def _enter(ledger: Path, entry: dict) -> None:
    """Replace the entry of this chapter and text."""
    entries = json.loads(read_text(ledger)) if ledger.exists() else []
    key = (entry["chapter"], entry["text"])
    entries = [e for e in entries if (e["chapter"], e["text"]) != key] + [entry]
    entries.sort(key=lambda e: (e["chapter"], e["section"], e["text"]))
    write_text(ledger, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
