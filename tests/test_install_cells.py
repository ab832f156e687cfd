"""Install cells: they bring what their notebook imports, from where the reader says."""

import ast
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import SimpleNamespace

import install_cells
import jupytext
import nbformat
import pytest
import yaml
from install_cells import ROOT, extras_needed, fill, install_cell, packages_needed
from IPython.core.inputtransformer2 import TransformerManager

TEXTS = sorted((ROOT / "book").glob("[0-9][0-9]_*.md"))
by_name = pytest.mark.parametrize("text", TEXTS, ids=lambda t: t.stem)
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def code_of(text: Path) -> list[str]:
    return [c.source for c in jupytext.read(text).cells if c.cell_type == "code"]


def notebook(*cells: str) -> nbformat.NotebookNode:
    cells = ("%pip install x", *cells)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])


# --- which extras -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "extras"),
    [
        ("import torch, transformers\nfrom course_lib import plotting", {}),
        ("from trl import SFTConfig", {"trl": "alignment"}),
        ("def f():\n    import datasets.features as d", {"datasets": "alignment"}),
        ("import peft\nfrom course_lib import peft as ours", {"peft": "alignment"}),
        ("%pip --version\n!ls\nimport rensa", {"rensa": "curation"}),
    ],
)
def test_extras_follow_from_imports(source, extras):
    """trl, datasets and peft stand in the extra alignment of pyproject.toml, rensa in curation."""
    assert extras_needed(packages_needed([source])) == extras


def test_what_the_package_imports_counts_too():
    """course_lib.curation imports resiliparse; a notebook need not name it to need it."""
    for source in ("from course_lib.curation import kept", "from course_lib import curation"):
        assert extras_needed(packages_needed([source]))["resiliparse"] == "curation"


def test_what_nothing_brings_is_named():
    with pytest.raises(ValueError, match="flask is imported, and no dependency or extra"):
        install_cell(notebook("import flask"))


def test_everything_that_the_package_imports_is_declared():
    """SciPy once came with nothing: it was on the machine, and missing in a fresh environment."""
    modules = [".".join(f.relative_to(ROOT).with_suffix("").parts)
               for f in (ROOT / "course_lib").rglob("*.py")]  # fmt: skip
    packages = packages_needed([f"import {module}" for module in modules])
    assert {"torch", "transformers"} <= packages
    assert extras_needed(packages)["rensa"] == "curation"


# --- the cells ----------------------------------------------------------------------------------


@by_name
def test_the_first_cell_is_the_install_cell_of_this_notebook(text):
    """And the same in all chapters up to what is needed; short enough for the page."""
    content = text.read_text(encoding="utf-8")
    assert fill(content) == content, "run tools/install_cells.py"
    first = code_of(text)[0]
    same = re.sub(r"course_lib\[.*?\]", "course_lib", re.sub(r"needed = .*", "", first))
    plain = install_cell(notebook("import torch"))
    assert same == re.sub(r"needed = .*", "", plain)
    lines = first.splitlines()
    assert len(lines) <= 20 and max(map(len, lines)) <= 79


def test_another_first_cell_is_not_overwritten():
    with pytest.raises(ValueError, match="not the install cell"):
        fill("```{code-cell} ipython3\nimport torch\n```\n")


class Ran(SimpleNamespace):
    """Stands in for IPython: keeps the magics that a cell calls."""

    def run_line_magic(self, name, line):
        self.magics.append(f"{name} {line}")


def run_cell(source: str, monkeypatch, folder: Path, absent=(), course_source=None) -> list[str]:
    """Run an install cell in ``folder`` as if the packages ``absent`` were not there."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COURSE_SOURCE", raising=False)
    if course_source is not None:
        monkeypatch.setenv("COURSE_SOURCE", course_source)
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    ran = Ran(magics=[])
    names = {"get_ipython": lambda: ran}
    exec(TransformerManager().transform_cell(source), names)
    return [m.replace("{source}", names["source"]) for m in ran.magics]


TRL = install_cell(notebook("import trl"), address="")


@by_name
def test_nothing_happens_where_everything_is_there(text, monkeypatch, tmp_path):
    assert run_cell(code_of(text)[0], monkeypatch, tmp_path) == []


@pytest.mark.parametrize("absent", ["course_lib", "trl"])
def test_what_is_missing_is_installed_from_where_the_reader_says(absent, monkeypatch, tmp_path):
    """Also when only trl is missing: the course may be installed without its extras."""
    wheel = tmp_path / "course lib.whl"
    (magic,) = run_cell(TRL, monkeypatch, tmp_path, [absent], str(wheel))
    assert magic == f'pip install --quiet "course_lib[alignment] @ {wheel.as_uri()}"'
    address = "git+https://example.org/x"
    (magic,) = run_cell(TRL, monkeypatch, tmp_path, [absent], address)
    assert magic == f'pip install --quiet "course_lib[alignment] @ {address}"'


def test_in_a_copy_of_the_repository_that_copy_is_installed(monkeypatch):
    (magic,) = run_cell(TRL, monkeypatch, ROOT / "book", ["trl"])
    assert magic == f'pip install --quiet "course_lib[alignment] @ {ROOT.as_uri()}"'


def test_without_an_address_it_says_what_to_set_and_fetches_nothing(monkeypatch, tmp_path):
    with pytest.raises(ImportError, match=r"(?s)\['trl'\] not installed.*%env COURSE_SOURCE="):
        run_cell(TRL, monkeypatch, tmp_path, ["trl"])


def test_a_published_address_is_fetched_from(monkeypatch, tmp_path):
    cell = install_cell(notebook("import trl"), address="git+https://example.org/us@main")
    (magic,) = run_cell(cell, monkeypatch, tmp_path, ["trl"])
    assert magic.endswith('"course_lib[alignment] @ git+https://example.org/us@main"')


# --- the repository's address -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://github.com.invalid/us/course", ""),
        ("https://github.com/us/course", "git+https://github.com/us/course@main"),
        ("https://github.com/us/not.invalid", "git+https://github.com/us/not.invalid@main"),
    ],
)
def test_the_placeholder_is_recognised(url, address, monkeypatch, tmp_path):
    monkeypatch.setattr(install_cells, "ROOT", tmp_path)
    config = yaml.safe_dump({"repository": {"url": url, "branch": "main"}})
    (tmp_path / "_config.yml").write_text(config, encoding="utf-8")
    assert install_cells.repository_address() == address


def test_nothing_leads_to_an_address_that_is_nobodys():
    """No cell fetches from it, no button leads to it: whoever took the name would be run."""
    if install_cells.repository_address():
        pytest.skip("the repository has an address")
    assert "launch_buttons" not in CONFIG
    assert not [k for k, v in CONFIG["html"].items() if re.fullmatch(r"use_\w+_button", k) and v]
    for text in TEXTS:
        assert "git+http" not in code_of(text)[0].replace("(git+https:...)", "")


# --- a bare environment -------------------------------------------------------------------------


def thin_wheel(distribution: Distribution, folder: Path) -> None:
    """A wheel with the metadata of an installed distribution and none of its files.

    pip resolves and installs it as it would the whole: name, version, dependencies and extras are
    the real ones.
    """
    name = re.sub(r"[-_.]+", "_", distribution.name)
    info = f"{name}-{distribution.version}.dist-info"
    files = {
        f"{info}/METADATA": distribution.read_text("METADATA"),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(content.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-{distribution.version}-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)


class Bare:
    """An environment with nothing in it but Jupyter's shell and pip, and wheels to install from.

    The wheels carry the metadata of what is installed here. After pip has installed some, their
    files are linked in: nothing is there that pip did not resolve.
    """

    def __init__(self, folder: Path):
        self.folder, self.wheels = folder, folder / "wheels"
        self.wheels.mkdir()
        self.real = {re.sub(r"[-_.]+", "-", d.name).lower(): d for d in distributions()}
        for name, distribution in self.real.items():
            if name not in ("course-lib", "pip") and distribution.read_text("METADATA"):
                thin_wheel(distribution, self.wheels)
        venv = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        self.python = venv / "bin" / "python"
        self.packages = next(venv.glob("lib/python*/site-packages"))
        self.link("pip")
        self.pip("ipython")

    def run(self, *args, **environment) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
        clean |= {
            "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1", "IPYTHONDIR": str(self.folder / "ipython"),
            "PYTHONPATH": str(ROOT / "tests" / "offline"), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        done = subprocess.run([self.python, *args], cwd=self.folder, env=clean | environment,
                              capture_output=True, text=True)  # fmt: skip
        self.link(*self.installed())
        return done

    def pip(self, *requirements: str) -> None:
        done = self.run("-m", "pip", "install", "--quiet", "--no-compile", *requirements)
        assert done.returncode == 0, done.stderr

    def installed(self) -> set[str]:
        found = distributions(path=[str(self.packages)])
        return {re.sub(r"[-_.]+", "-", d.name).lower() for d in found} & self.real.keys()

    def link(self, *names: str) -> None:
        for distribution in (self.real[name] for name in names if name != "course-lib"):
            tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}
            for top in tops:
                here, there = self.packages / top, Path(distribution.locate_file(top))
                if not here.exists() and not top.endswith((".dist-info", ".pth")):
                    here.symlink_to(there)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The course as a wheel, built from a copy so that nothing is left in the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "course_lib", folder / "course_lib",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", folder / "out", folder],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return next((folder / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare"))


def test_in_a_bare_environment_the_cell_of_06_brings_all_that_its_notebook_imports(bare, wheel):
    """The real cell, run by a real IPython, with a real pip, from a wheel of the course.

    Controls, in the same environment: before, the course is missing and the cell says what to set;
    the cell without its extras leaves trl missing, as it did on Colab.
    """
    text = next(t for t in TEXTS if t.stem.startswith("06"))
    cell, *rest = code_of(text)
    trl = {n for n in packages_needed(rest) if n in ("trl", "datasets")}
    assert trl, "06 shows the library's way"
    path = bare.folder / "cell.ipy"

    def run_install_cell(source: str, **environment):
        path.write_text(source, encoding="utf-8")
        return bare.run("-m", "IPython", "--colors=NoColor", path, **environment)

    before = run_install_cell(cell)
    assert "['course_lib', " in before.stdout + before.stderr
    assert "%env COURSE_SOURCE=" in before.stdout + before.stderr
    assert "course_lib" not in {d.name for d in distributions(path=[str(bare.packages)])}

    run_install_cell(cell.replace("[alignment]", ""), COURSE_SOURCE=str(wheel))
    assert "torch" in bare.installed() and not trl & bare.installed()

    done = run_install_cell(cell, COURSE_SOURCE=str(wheel))
    assert trl <= bare.installed(), done.stdout + done.stderr
    lines = [line for source in rest for line in imports_of(source)]
    done = bare.run("-c", "\n".join(lines), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr


def imports_of(source: str) -> list[str]:
    """The import statements of a cell, as one line each."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    return [ast.unparse(node) for node in nodes]
