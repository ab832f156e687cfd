"""Execute the notebooks whose text changed and write their published pairs.

``book/NN_topic.md`` is the text that people edit. This tool runs it in a fresh kernel, measures
time and memory, fills in the budget card and the install address, and writes ``NN_topic.ipynb``
with its outputs. A notebook runs again when its text changed since; ``--all`` runs every one
(after a change of the package). The pages generated from the ledger follow.
"""

import argparse
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import jupytext
import nbformat
import psutil
import yaml
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
CEILING_SECONDS, CEILING_MB = 90, 2000
CARD = re.compile(r"(:::\{admonition\} Budget\n:class: note\n).*?(\n:::)", re.DOTALL)
SETUP = re.compile(r"git\+https://[^\s\"']+")


# Plain progress bars will do in a kernel without ipywidgets: no need to say so on every page.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"


def notebook_texts() -> list[Path]:
    """The notebooks' texts, in the order of the chapters."""
    return sorted(BOOK.glob("[0-9][0-9]_*.md"))


def install_address() -> str:
    """What pip installs on Colab, from the one place that names the repository."""
    repository = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    return f"git+{repository['url']}@{repository['branch']}"


def sources(notebook: nbformat.NotebookNode) -> list[tuple]:
    """What makes two notebooks the same text: type, source and tags of each cell."""
    return [
        (c.cell_type, c.source.strip(), tuple(c.metadata.get("tags", [])))
        for c in notebook.cells
        if c.source.strip()
    ]


def in_sync(text: Path) -> bool:
    pair = text.with_suffix(".ipynb")
    if not pair.exists():
        return False
    return sources(jupytext.read(text)) == sources(nbformat.read(pair, as_version=4))


class PeakMemory(threading.Thread):
    """Watches the resident memory of this process's children (the kernels), in MB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.stopped = 0.0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.2):
            used = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    used += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, used / 1e6)


def budget_line(seconds: float, peak_mb: float) -> str:
    """The card's text; rounded up so that a quiet rerun does not change it."""
    return (
        f"{-(-seconds // 5) * 5:.0f} s on two cores · {-(-peak_mb // 100) * 100:.0f} MB of memory "
        "· no GPU needed · no download beyond the package"
    )


def execute(text: Path) -> None:
    """Run one notebook and write it and its budget card."""
    content = SETUP.sub(install_address(), text.read_text())
    notebook = jupytext.reads(content, fmt="md:myst")
    watch = PeakMemory()
    watch.start()
    started = time.perf_counter()
    NotebookClient(notebook, timeout=180, kernel_name="python3",
                   resources={"metadata": {"path": str(BOOK)}}).execute()  # fmt: skip
    seconds = time.perf_counter() - started
    watch.stopped.set()
    line = budget_line(seconds, watch.peak)
    if not CARD.search(content):
        sys.exit(f"{text.name} has no budget card: see CONTRIBUTING.md for its form.")
    content = CARD.sub(lambda m: m[1] + line + m[2], content)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = CARD.sub(lambda m: m[1] + line + m[2], cell.source)
        cell.metadata.pop("execution", None)
    notebook.metadata["budget"] = {"seconds": round(seconds, 1), "peak_mb": round(watch.peak)}
    write_atomically(text, content)
    write_atomically(text.with_suffix(".ipynb"), nbformat.writes(notebook) + "\n")
    print(f"{text.stem}: {seconds:.0f} s, {watch.peak:.0f} MB")
    if seconds > CEILING_SECONDS or watch.peak > CEILING_MB:
        sys.exit(f"{text.stem} exceeds its ceiling of {CEILING_SECONDS} s and {CEILING_MB} MB.")


def write_atomically(path: Path, content: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(content)
    os.replace(part, path)


def claims_page() -> str:
    """The ledger of claims as a page of the book."""
    ledger = BOOK / "claims.json"
    entries = json.loads(ledger.read_text()) if ledger.exists() else []
    lines = [
        "# Claims",
        "",
        "Every sentence below was asserted by a notebook of this book and is measured again in "
        "each test run. A sentence that fails stops the run.",
    ]
    for chapter in sorted({e["chapter"] for e in entries}):
        lines += ["", f"## {chapter}", "", "| lecture | claim | evidence |", "| --- | --- | --- |"]
        for e in (e for e in entries if e["chapter"] == chapter):
            mark = "" if e["holds"] else "**does not hold:** "
            cells = (e["section"], mark + e["text"], e["evidence"])
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--all", action="store_true", help="execute every notebook")
    args = parser.parse_args()
    changed = [t for t in notebook_texts() if args.all or not in_sync(t)]
    for text in changed:
        execute(text)
    write_atomically(BOOK / "claims.md", claims_page())
    if not changed:
        print("Every notebook is in step with its text.")


if __name__ == "__main__":
    main()
