"""Claims: sentences that a notebook proves by measuring, and the ledger that collects them.

A notebook begins with ``begin(chapter, section)`` and states each claim with ``claim``. The ledger
``book/claims.json`` holds one entry a chapter and text; the book shows it as a page.
"""

import json
import os
from pathlib import Path

LEDGER = "claims.json"
_current = {"chapter": "", "section": "", "ledger": None}


def begin(chapter: str, section: str, ledger: str | Path | None = None) -> None:
    """Say which chapter speaks and which section of the lecture it speaks of.

    May be called again for another section of the lecture.

    Args:
        chapter: the notebook's name, e.g. ``"03_decoder_only"``.
        section: the lecture's heading.
        ledger: the file to write; by default ``claims.json`` of the book that the notebook runs
            in, and none when it runs elsewhere (Colab).
    """
    _current.update(chapter=chapter, section=section, ledger=ledger or _find_ledger())


def _find_ledger() -> Path | None:
    for folder in (Path.cwd(), Path.cwd() / "book"):
        if folder.name == "book" and (folder.parent / "_toc.yml").exists():
            return folder / LEDGER
    return None


def claim(text: str, holds: bool, evidence: str | dict) -> None:
    """Assert a sentence, print it, and enter it in the ledger.

    Args:
        text: one sentence that can be true or false.
        holds: what was measured.
        evidence: how it was measured, with figures rounded so that a second run gives the same.

    Raises:
        AssertionError: it does not hold (the ledger says so too).
        ValueError: no chapter was begun, or there is no evidence.
    """
    if not _current["chapter"]:
        raise ValueError("Call course_lib.claims.begin(chapter, section) before the first claim.")
    if not evidence:
        raise ValueError(f"The claim {text!r} comes without evidence: say what was measured.")
    holds = bool(holds)
    if isinstance(evidence, dict):
        evidence = ", ".join(f"{name} {value}" for name, value in evidence.items())
    if _current["ledger"] is not None:
        _enter(Path(_current["ledger"]), text, holds, evidence)
    if not holds:
        raise AssertionError(f"claim fails: {text} ({evidence})")
    print(f"claim holds: {text}")


def _enter(ledger: Path, text: str, holds: bool, evidence: str) -> None:
    """Replace the entry of this chapter and text; the file is renamed into place."""
    entries = json.loads(ledger.read_text()) if ledger.exists() else []
    key = (_current["chapter"], text)
    entries = [e for e in entries if (e["chapter"], e["text"]) != key]
    entries.append({
        "chapter": key[0], "section": _current["section"], "text": text, "holds": holds,
        "evidence": evidence,
    })  # fmt: skip
    entries.sort(key=lambda e: (e["chapter"], e["section"], e["text"]))
    part = ledger.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    os.replace(part, ledger)
