"""The test run itself: a notebook that goes wrong is told once, and the next one still runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {
    "a_dies": ["1 + 1", "import os\nos._exit(1)", "1 + 1", "1 + 1"],
    "b_hangs": ["1 + 1", "while True:\n    pass", "1 + 1"],
    "c_dear": ["1 + 1", "2 + 2"],
    "d_good": ["1 + 1", "2 + 2", "3 + 3"],
}
CEILINGS = """
import notebooks
notebooks.ceiling_work = lambda name: 0 if name == "c_dear" else 90
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One pytest run over four small notebooks with the course's conftest."""
    folder = tmp_path_factory.mktemp("notebooks")
    for name, sources in NOTEBOOKS.items():
        cells = []
        for i, source in enumerate(sources):
            cell = nbformat.v4.new_code_cell(source, execution_count=i + 1)
            if source[0].isdigit():
                cell.outputs = [nbformat.v4.new_output(
                    "execute_result", {"text/plain": str(eval(source))}, execution_count=i + 1)]
            cells.append(cell)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    (folder / "small_ceilings.py").write_text(CEILINGS, encoding="utf-8")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), str(folder)])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "small_ceilings", "--nbval",
         "--nbval-current-env", "--nbval-cell-timeout", "20", "-p", "no:cacheprovider", "-v",
         "-rA", "--rootdir", str(folder), str(folder)],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    ).stdout  # fmt: skip


def outcomes(output, name):
    """What became of each cell, in order; an error of the teardown stands beside its cell."""
    return re.findall(rf"^{name}::ipynb::Cell \d+ (PASSED|FAILED|SKIPPED)", output, re.MULTILINE)


def test_a_kernel_that_dies_is_told_once(run):
    assert outcomes(run, "a_dies") == ["PASSED", "FAILED", "SKIPPED", "SKIPPED"], run
    assert run.count("The kernel died in this cell") >= 1
    assert "a_dies.ipynb: its kernel ended in Cell 1" in run


def test_a_cell_that_overruns_is_told_once(run):
    assert outcomes(run, "b_hangs") == ["PASSED", "FAILED", "SKIPPED"], run


def test_a_notebook_over_its_ceiling_fails_after_its_cells(run):
    assert outcomes(run, "c_dear")[:2] == ["PASSED", "PASSED"], run
    assert re.search(r"c_dear.ipynb did \d+ seconds of work", run)
    assert "not torn down properly" not in run


def test_the_next_notebook_runs(run):
    assert outcomes(run, "d_good") == ["PASSED"] * 3, run
    assert re.search(r"^d_good.ipynb: work \d+, \d+ MB", run, re.MULTILINE)


def test_nothing_else_happened(run):
    assert re.search(r"2 failed, 7 passed, 3 skipped.* 1 error", run), run[-500:]
