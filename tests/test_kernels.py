"""Notebooks run in the kernel of this Python, however the user's shell is set up."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import kernels
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
WHERE = "import os, sys; print(sys.prefix, os.getenv('MARK'))"
"""Prints which Python runs, and the mark of a start-up file."""


@pytest.fixture
def foreign(tmp_path, monkeypatch) -> Path:
    """A shell set up for another Jupyter, by the variable and in the user's home, and with a
    start-up file."""
    home = tmp_path / "foreign"
    spec = home / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-c", "raise SystemExit('the kernel of another Jupyter')"]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}),
        encoding="utf-8",
    )
    (home / "startup.py").write_text("import os; os.environ['MARK'] = 'run'\n", encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(home / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(home / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("PYTHONSTARTUP", str(home / "startup.py"))
    monkeypatch.delenv("MARK", raising=False)
    return home


def test_another_jupyter_would_supply_the_kernel(foreign, monkeypatch):
    """Control: with nothing done, or the variable alone removed, the name means the other's."""
    theirs = str(foreign / "jupyter" / "kernels" / "python3")
    assert KernelSpecManager().get_kernel_spec("python3").resource_dir == theirs
    monkeypatch.delenv("JUPYTER_PATH")
    assert KernelSpecManager().get_kernel_spec("python3").resource_dir == theirs


def where() -> str:
    """What ``WHERE`` prints in a kernel that is started by the name alone."""
    notebook = new_notebook(cells=[new_code_cell(WHERE)])
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    return next(o.text for o in notebook.cells[0].outputs if o.get("name") == "stdout")


def test_a_start_up_file_would_be_run(foreign, monkeypatch):
    """Control: with the kernel alone put right."""
    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix, "share", "jupyter")))
    assert where() == f"{sys.prefix} run\n"


def test_the_kernel_is_of_this_python(foreign):
    kernels.use_this_python()
    assert where() == f"{sys.prefix} None\n"


def test_nbval_takes_it_too(foreign, tmp_path):
    """As ``make test`` starts it: in a pytest whose conftest.py has called the function."""
    output = new_output("stream", name="stdout", text=f"{sys.prefix} None\n")
    notebook = new_notebook(cells=[new_code_cell(WHERE, execution_count=1, outputs=[output])])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "where.ipynb")
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "import kernels\nkernels.use_this_python()\n", encoding="utf-8",
    )  # fmt: skip
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", "where.ipynb"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout


def test_make_starts_its_programs_without_what_the_shell_has_for_others(tmp_path):
    """The recipe of a target sees .venv's kernels and UTF-8, and none of the user's Python."""
    names = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONOPTIMIZE",
             "JUPYTER_PATH", "PYTHONUTF8")  # fmt: skip
    show = tmp_path / "show.mk"
    lines = "".join(f'\t@echo "{name}=$${name}"\n' for name in names)
    show.write_text(f"include Makefile\nshow:\n{lines}", encoding="utf-8")
    result = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), "-f", str(show), "show"],
        env={**os.environ, **dict.fromkeys(names, "/foreign")}, capture_output=True,
        encoding="utf-8",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    seen = dict(re.findall(r"^(\w+)=(.*)$", result.stdout, re.MULTILINE))
    assert seen == {**dict.fromkeys(names, ""), "JUPYTER_PATH": f"{ROOT}/.venv/share/jupyter",
                    "PYTHONUTF8": "1"}  # fmt: skip
