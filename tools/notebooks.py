"""Execute the notebooks whose text changed and write their published pairs.

``book/NN_topic.md`` is the text that people edit. This tool runs it in a fresh kernel, measures
time, work and memory, fills in the budget card and the install cell, and writes
``NN_topic.ipynb`` with its outputs; what it claims replaces its entries in the ledger, of which the
page of claims is made. A notebook runs again when its text changed since; ``--all`` runs every one
(after a change of the package).
"""

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import install_cells
import jupytext
import nbformat
import psutil
from kernels import use_this_python
from nbclient import NotebookClient
from pages import NOT_REBUILT
from work import calibrate_in, children_seconds, work

from course_lib.claims import bound, measured
from course_lib.files import read_text, write_text

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
CEILING_SECONDS, CEILING_MB = 45, 2000
CORES = 2
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2"}  # fmt: skip
"""The kernels that a plain laptop has: its seconds stand on the card."""
CARD = re.compile(r"(:::\{admonition\} Budget\n:class: note\n).*?(\n:::)", re.DOTALL)


# Plain progress bars will do in a kernel without ipywidgets: no need to say so on every page.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"


def notebook_texts() -> list[Path]:
    """The notebooks' texts, in the order of the chapters."""
    return sorted(BOOK.glob("[0-9][0-9]_*.md"))


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


def ceiling_seconds(name: str) -> int:
    """What a notebook may take on two AVX2 cores; four times that where it is not rebuilt yet."""
    return CEILING_SECONDS * (4 if name in NOT_REBUILT else 1)


def ceiling_work(name: str) -> int:
    """The same as processor seconds of the reference machine (``work.py``)."""
    return CORES * ceiling_seconds(name)


class Watch(threading.Thread):
    """Watches this process's children (the kernels): peak memory in MB, processor seconds."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.seconds, self.stopped = 0.0, 0.0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.2):
            used = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    used += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, used / 1e6)
            self.seconds = max(self.seconds, children_seconds())


def budget_line(seconds: float, peak_mb: float) -> str:
    """The card's text; rounded up so that a quiet rerun does not change it."""
    return (
        f"{-(-seconds // 5) * 5:.0f} s on two cores · {-(-peak_mb // 100) * 100:.0f} MB of memory "
        "· no GPU needed · no download beyond the package"
    )


def execute(text: Path) -> None:
    """Run one notebook; write it, its budget card and its claims."""
    content = install_cells.fill(read_text(text))
    if not CARD.search(content):
        sys.exit(f"{text.name} has no budget card: see CONTRIBUTING.md for its form.")
    notebook = jupytext.reads(content, fmt="md:myst")
    use_this_python()
    watch = Watch()
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "claims.json"
        environment = {**os.environ, **AVX2, "COURSE_LEDGER": str(ledger)}
        started = time.perf_counter()
        client = NotebookClient(notebook, timeout=None, kernel_name="python3",
                                resources={"metadata": {"path": str(BOOK)}})  # fmt: skip
        client.execute(env=environment)
        seconds = time.perf_counter() - started
        entries = entries_of(ledger)
    watch.stopped.set()
    done = work(watch.seconds, calibrate_in(environment))
    line = budget_line(seconds, watch.peak)
    content = CARD.sub(lambda m: m[1] + line + m[2], content)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"  # the same in every run, so that a diff shows what changed
        if cell.cell_type == "markdown":
            cell.source = CARD.sub(lambda m: m[1] + line + m[2], cell.source)
        cell.metadata.pop("execution", None)
    notebook.metadata["budget"] = {"seconds": round(seconds, 1), "peak_mb": round(watch.peak),
                                   "work": round(done, 1)}  # fmt: skip
    write_text(text, content)
    write_text(text.with_suffix(".ipynb"), nbformat.writes(notebook) + "\n")
    enter(text.stem, entries)
    print(f"{text.stem}: {seconds:.0f} s, work {done:.0f}, {watch.peak:.0f} MB")
    if seconds > ceiling_seconds(text.stem) or watch.peak > CEILING_MB:
        print(f"{text.stem} exceeds its ceiling of {ceiling_seconds(text.stem)} s on two AVX2 "
              f"cores and {CEILING_MB} MB: if this machine is not busy, make it smaller.")


# --- the ledger of claims -----------------------------------------------------------------------


def entries_of(ledger: Path) -> list[dict]:
    return json.loads(read_text(ledger)) if ledger.exists() else []


def enter(chapter: str, entries: list[dict]) -> None:
    """Put what a chapter claims in place of what it claimed before."""
    ledger = BOOK / "claims.json"
    whole = [e for e in entries_of(ledger) if e["chapter"] != chapter] + entries
    whole.sort(key=lambda e: (e["chapter"], e["section"], e["text"]))
    write_text(ledger, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def claims_page() -> str:
    """The ledger of claims as a page of the book."""
    entries = entries_of(BOOK / "claims.json")
    lines = [
        "# Claims",
        "",
        "Every sentence below was asserted by a notebook of this book. Where something is trained "
        "or sampled, a study ran it on several seeds: the table gives the mean, its 99 % interval "
        "by Student's t, and the bound, which must lie outside of the interval. In each test run "
        "the notebooks run again, and one more seed of every study is compared with what the "
        "study predicts. A sentence that fails stops the run.",
    ]
    for chapter in sorted({e["chapter"] for e in entries}):
        lines += ["", f"## {chapter}", "", "| lecture | claim | measured | bound | study |",
                  "| --- | --- | --- | --- | --- |"]  # fmt: skip
        for e in (e for e in entries if e["chapter"] == chapter):
            cells = (e["section"], e["text"], measured(e), bound(e), e.get("study", ""))
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name", nargs="*", help="chapters to execute, e.g. 03_decoder_only")
    parser.add_argument("--all", action="store_true", help="execute every notebook")
    args = parser.parse_args()
    texts = {text.stem: text for text in notebook_texts()}
    if unknown := set(args.name) - set(texts):
        parser.error(f"no chapter {', '.join(sorted(unknown))}; there are {', '.join(texts)}")
    named = [texts[name] for name in args.name]
    changed = named or [t for t in texts.values() if args.all or not in_sync(t)]
    for text in changed:
        execute(text)
    write_text(BOOK / "claims.md", claims_page())
    if not changed:
        print("Every notebook is in step with its text.")


if __name__ == "__main__":
    main()
