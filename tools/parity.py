"""Write ``book/parity.md``: how far each piece is from the library's, as the tests measured it.

The tests leave one line of JSON a piece in ``build/parity`` (``parity_record.py``); ``make test``
runs this after them. A piece that was not measured does not stand on the page.
"""

import json
import math
import sys
from pathlib import Path

from notebooks import BOOK, ROOT, write_atomically

MEASURED = ROOT / "build" / "parity"
HEAD = """# Parity

Each piece below was built from scratch and then held against the library that practitioners use,
with the same weights and inputs, on random small configurations. The page is written by the test
run. The largest difference is rounded up to one digit; above the tolerance the run fails.

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
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.jsonl"))]


def main() -> None:
    rows = measured()
    if not rows:
        sys.exit(f"{MEASURED} holds no measurements: run the tests first (make test).")
    write_atomically(BOOK / "parity.md", parity_page(rows))


if __name__ == "__main__":
    main()
