"""The page of parity: how far each piece is from the library's, as the tests measured it.

The tests leave one line of JSON a piece in ``build/parity`` (``parity_record.py``). ``make test``
then compares the page with them: each piece that stands there was measured, each measured one
stands there, and none differs by more than its tolerance. ``make parity`` writes the page anew. The
last digits of a difference depend on the processor, so they are not compared.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from notebooks import BOOK, ROOT

from course_lib.files import read_text, write_text

MEASURED = ROOT / "build" / "parity"
HEAD = """# Parity

Each piece below was built from scratch and then held against the library that practitioners use,
with the same weights and inputs, on random small configurations. The largest difference is
rounded up to one digit, as it was on the machine that made this page. Each test run measures it
again, and fails above the tolerance.

| piece | counterpart | configurations | largest difference | tolerance |
| --- | --- | --- | --- | --- |
"""


def round_up(difference: float) -> str:
    """One significant digit, never below: 3.2e-6 is "4e-06". A difference of 0 is "0"."""
    if difference == 0:
        return "0"
    unit = 10.0 ** math.floor(math.log10(difference))
    return f"{math.ceil(difference / unit * (1 - 1e-9)) * unit:.0e}"


def parity_page(rows: list[dict]) -> str:
    """The page, its rows sorted by piece."""
    lines = [
        f"| {r['piece']} | `{r['counterpart']}` | {r['configurations']} | "
        f"{round_up(r['difference'])} | {r['tolerance']:.0e} |"
        for r in sorted(rows, key=lambda r: (r["piece"].lower(), r["counterpart"]))
    ]
    total = sum(r["configurations"] for r in rows)
    return HEAD + "\n".join(lines) + f"\n\n{total} configurations in all.\n"


def measured(folder: Path = MEASURED) -> list[dict]:
    """What the tests left, one dict a piece."""
    return [json.loads(read_text(p)) for p in sorted(folder.glob("*.jsonl"))]


def unlike(page: str, rows: list[dict]) -> list[str]:
    """Lines of the page that the measured rows do not bear out, and rows that it lacks."""

    def known(text: str) -> set[str]:
        cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
        return {" | ".join(row[:3] + row[4:]) for row in cells}

    problems = known(page) ^ known(parity_page(rows))
    return sorted(problems) + [r["piece"] for r in rows if not r["difference"] <= r["tolerance"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="write the page anew")
    args = parser.parse_args()
    rows, page = measured(), BOOK / "parity.md"
    if not rows:
        sys.exit(f"{MEASURED} holds no measurements: run the tests first (make test).")
    if args.write:
        write_text(page, parity_page(rows))
    elif problems := unlike(read_text(page), rows):
        sys.exit("book/parity.md is not what the tests measured (make parity writes it anew):\n"
                 + "\n".join(problems))  # fmt: skip


if __name__ == "__main__":
    main()
