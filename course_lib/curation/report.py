"""A whole crawl through the pipeline, shard by shard, and its figures as one JSON object."""

import argparse
import json
import platform
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

from course_lib.curation.duplicates import DuplicateIndex
from course_lib.curation.pipeline import Document, Funnel, back, front
from course_lib.curation.removal import Contamination, evaluation_items, leak_texts
from course_lib.files import read_text, write_json
from course_lib.world.crawl import PAGES_PER_SHARD, shard_pages
from course_lib.world.shards import in_order

STORED = Path(__file__).with_name("crawl_200k.json")
"""Written by ``python -m course_lib.curation --pages 200000 --out`` with this file's path."""


def stored() -> dict:
    """The figures of ``run(200_000)``, which come with the package."""
    return json.loads(read_text(STORED))


@dataclass
class Extraction:
    """Words of the kept articles against the true main text, both as bags of words."""

    shared: int = 0
    found: int = 0
    true: int = 0

    def add(self, document: Document) -> None:
        found = Counter(re.findall(r"\w+", document.text))
        true = Counter(re.findall(r"\w+", document.truth.text))
        self.shared += (found & true).total()
        self.found += found.total()
        self.true += true.total()

    def figures(self) -> dict[str, float]:
        return {"precision": self.shared / max(self.found, 1),
                "recall": self.shared / max(self.true, 1)}  # fmt: skip


@dataclass
class Tally:
    """What is counted about the documents that come out.

    ``near_duplicates_left``: copies of an article that is there already, as itself or as a copy.
    ``stand_ins``: copies of an article that an earlier stage lost; the truth calls them unwanted.
    """

    extraction: Extraction = field(default_factory=Extraction)
    groups: set[int] = field(default_factory=set)
    documents: int = 0
    near_duplicates_left: int = 0
    stand_ins: int = 0
    with_personal_data: int = 0
    personal_data_left: int = 0

    def add(self, document: Document) -> None:
        self.documents += 1
        self.with_personal_data += bool(document.truth.personal)
        self.personal_data_left += any(p in document.text for p in document.truth.personal)
        if document.truth.original is not None:
            self.near_duplicates_left += document.truth.original in self.groups
            self.stand_ins += document.truth.original not in self.groups
            self.groups.add(document.truth.original)
        if document.truth.wanted:
            self.groups.add(document.number)
            self.extraction.add(document)


def _front_shard(job: tuple[int, int], leaks: Sequence[str]) -> tuple[list[Document], Funnel]:
    """One shard through the stages that look at one page alone."""
    funnel = Funnel()
    return list(front(shard_pages(*job, leaks), funnel)), funnel


def _front_shards(
    seed: int, shards: int, leaks: list[str], processes: int
) -> Iterator[tuple[list[Document], Funnel]]:
    """All shards in order."""
    jobs = ((seed, shard) for shard in range(shards))
    return in_order(partial(_front_shard, leaks=leaks), jobs, processes)


def run(
    pages: int, *, seed: int = 0, processes: int = 1, items_per_figure: int = 50,
    progress: bool = True,
) -> dict:  # fmt: skip
    """Filter the first ``pages`` pages of a crawl.

    Args:
        pages: a multiple of ``PAGES_PER_SHARD``.
        items_per_figure: how many evaluation items of each figure to keep out; those with a
            question are also what the crawl's leaks are made of.

    Returns:
        The figures: ``funnel`` (a row a stage), ``kinds`` (stage -> kind -> pages), ``dropped``
        (reason -> pages), ``extraction``, the counts of ``Tally``, ``memory`` (a row every 10,000
        pages: this process's resident MB, the index's MB, pages kept), ``kept`` (shares of the
        pages and of the characters of HTML), ``seconds``, ``cpu_seconds`` (of this process: all of
        the work where ``processes`` is 1), ``pages_per_second``, ``made_by``.

    Raises:
        ValueError: ``pages`` is no positive multiple of ``PAGES_PER_SHARD``.
    """
    import psutil
    from tqdm.auto import tqdm

    if pages < 1 or pages % PAGES_PER_SHARD:
        raise ValueError(
            f"The crawl comes in shards of {PAGES_PER_SHARD} pages, got {pages}: ask for a "
            f"multiple, e.g. {max(1, round(pages / PAGES_PER_SHARD)) * PAGES_PER_SHARD}."
        )
    items = evaluation_items(0, items_per_figure)
    contamination = Contamination(item.query for item in items)
    funnel, before, tally, index, memory = Funnel(), Funnel(), Tally(), DuplicateIndex(), []
    process, started, cpu = psutil.Process(), time.perf_counter(), time.process_time()
    shards = _front_shards(seed, pages // PAGES_PER_SHARD, leak_texts(items), processes)
    with tqdm(total=pages, unit="page", disable=not progress, desc="curation") as bar:
        for number, (documents, part) in enumerate(shards, 1):
            before.add(part)
            for document in back(documents, funnel, index, contamination):
                tally.add(document)
            bar.update(PAGES_PER_SHARD)
            done = number * PAGES_PER_SHARD
            if done % 10_000 == 0 or done == pages:
                memory.append({"pages": done, "resident_mb": process.memory_info().rss / 1e6,
                               "index_mb": index.megabytes, "kept": tally.documents})  # fmt: skip
    before.add(funnel)
    rows, seconds = before.rows(), time.perf_counter() - started
    return {
        "made_by": made_by(pages, seed, processes), "pages": pages, "seed": seed,
        "processes": processes, "seconds": seconds, "cpu_seconds": time.process_time() - cpu,
        "pages_per_second": pages / seconds,
        "kept": {key: rows[-1][key] / rows[0][key] for key in ("pages", "characters")},
        "funnel": rows,
        "kinds": {stage: dict(kinds) for stage, kinds in before.pages.items()},
        "dropped": dict(before.dropped), "extraction": tally.extraction.figures(),
        "near_duplicates_left": tally.near_duplicates_left, "stand_ins": tally.stand_ins,
        "documents_with_personal_data": tally.with_personal_data,
        "documents_with_personal_data_left": tally.personal_data_left, "memory": memory,
    }  # fmt: skip


def made_by(pages: int, seed: int, processes: int) -> dict[str, str]:
    """The command that makes such a report again, and the versions of the libraries that filter."""
    libraries = ("py3langid", "rensa", "resiliparse")
    command = f"python -m course_lib.curation --pages {pages} --seed {seed} --processes {processes}"
    return {"command": command, "python": platform.python_version(),
            **{name: metadata.version(name) for name in libraries}}  # fmt: skip


def table(report: dict) -> str:
    """The funnel as text."""
    lines = [f"{'stage':22s} {'pages':>8s} {'kept':>7s} {'precision':>9s} {'recall':>7s}"]
    for r in report["funnel"]:
        lines.append(f"{r['stage']:22s} {r['pages']:8d} {r['kept']:7.1%} {r['precision']:9.3f} "
                     f"{r['recall']:7.3f}")  # fmt: skip
    lines.append(f"characters kept: {report['kept']['characters']:.2%} of the HTML's; "
                 f"{report['pages_per_second']:.0f} pages/s")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m course_lib.curation", description=__doc__)
    parser.add_argument("--pages", type=int, default=10_000, help="default 10,000")
    parser.add_argument("--seed", type=int, default=0, help="which crawl (default 0)")
    parser.add_argument("--processes", type=int, default=1, help="default 1")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    try:
        report = run(args.pages, seed=args.seed, processes=args.processes)
    except ValueError as error:
        parser.error(str(error))
    print(table(report))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, report)
