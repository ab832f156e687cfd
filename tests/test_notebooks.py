"""Notebooks: pairs in step, budgets carded, few ignored outputs, numbers bound to the run."""

import json
import re

import jupytext
import nbformat
import pytest
import yaml
from notebooks import (
    BOOK,
    CARD,
    CEILING_MB,
    ROOT,
    ceiling_seconds,
    ceiling_work,
    claims_page,
    entries_of,
    in_sync,
    notebook_texts,
)

from course_lib.claims import summary

TEXTS = notebook_texts()
by_name = pytest.mark.parametrize("text", TEXTS, ids=lambda t: t.stem)


def pair_of(text):
    return nbformat.read(text.with_suffix(".ipynb"), as_version=4)


def test_there_are_notebooks_and_each_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = {c["file"] for part in toc["parts"] for c in part["chapters"]}
    assert TEXTS and {f"book/{t.stem}" for t in TEXTS} <= files


@by_name
def test_pairs_are_in_sync(text):
    assert in_sync(text), f"{text.name} changed without its pair: run make notebooks"


def test_a_changed_text_is_noticed(tmp_path):
    """Control: the comparison fails for a changed source, a changed tag and a missing pair."""
    text = TEXTS[0]
    for old, new in (("\n```{code-cell}", "\nAnother sentence.\n\n```{code-cell}"), ("# ", "## ")):
        copy = tmp_path / text.name
        copy.write_text(text.read_text().replace(old, new, 1))
        assert not in_sync(copy)
        copy.with_suffix(".ipynb").write_text(text.with_suffix(".ipynb").read_text())
        assert not in_sync(copy)
        copy.with_suffix(".ipynb").unlink()


@by_name
def test_every_code_cell_was_run_in_order_without_error(text):
    cells = [c for c in pair_of(text).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
    assert not [o for c in cells for o in c.outputs if o.get("name") == "stderr"]


@by_name
def test_few_outputs_are_ignored(text):
    """A notebook most of whose outputs are not compared proves nothing."""
    cells = [c for c in pair_of(text).cells if c.cell_type == "code" and c.outputs]
    ignored = [c for c in cells if "nbval-ignore-output" in c.metadata.get("tags", [])]
    assert len(cells) >= 5 and len(ignored) <= len(cells) / 4, (len(ignored), len(cells))
    tags = {t for c in pair_of(text).cells for t in c.metadata.get("tags", [])}
    assert not tags & {"nbval-skip", "raises-exception"}


@by_name
def test_the_budget_card_is_filled_and_below_the_ceiling(text):
    """As it was measured when the pair was made; ``conftest.py`` measures the work again."""
    budget = pair_of(text).metadata["budget"]
    card = CARD.search(text.read_text(encoding="utf-8"))[0]
    seconds, megabytes = map(int, re.search(r"(\d+) s on .*? (\d+) MB", card).groups())
    assert seconds >= budget["seconds"] and megabytes >= budget["peak_mb"]
    assert budget["seconds"] <= ceiling_seconds(text.stem) and budget["peak_mb"] <= CEILING_MB
    assert budget["work"] <= ceiling_work(text.stem)


@by_name
def test_glued_numbers_exist(text):
    """Every {glue:text} of the prose names a value that the run produced."""
    notebook = pair_of(text)
    glued = {
        o.metadata["scrapbook"]["name"]
        for c in notebook.cells if c.cell_type == "code"
        for o in c.outputs if o.get("metadata", {}).get("scrapbook")
    }  # fmt: skip
    used = set(re.findall(r"\{glue:text\}`([^`:]+)", text.read_text()))
    assert used and used <= glued, used - glued
    assert glued <= used, f"glued and never used: {sorted(glued - used)}"


@by_name
def test_no_progress_bars_or_paths_in_the_outputs(text):
    outputs = json.dumps([c.get("outputs", []) for c in pair_of(text).cells])
    assert "it/s]" not in outputs and str(ROOT) not in outputs and "site-packages" not in outputs


def test_the_page_of_claims_is_the_ledger():
    assert (BOOK / "claims.md").read_text(encoding="utf-8") == claims_page()
    assert {e["chapter"] for e in entries_of(BOOK / "claims.json")} == {t.stem for t in TEXTS}


@by_name
def test_the_ledger_has_what_the_notebook_printed(text):
    """Every claim with its figures, and no stale one."""
    printed = " ".join(
        " ".join(output.text.split())
        for cell in pair_of(text).cells if cell.cell_type == "code"
        for output in cell.outputs if output.get("name") == "stdout"
    )  # fmt: skip
    entries = [e for e in entries_of(BOOK / "claims.json") if e["chapter"] == text.stem]
    assert entries and printed.count("claim holds: ") == len(entries)
    for entry in entries:
        assert f"claim holds: {entry['text']} {summary(entry)}" in printed, entry["text"]


def test_texts_are_myst_notebooks():
    for text in TEXTS:
        assert jupytext.read(text).metadata["kernelspec"]["name"] == "python3"
