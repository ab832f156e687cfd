"""The first cell of every notebook: it installs the course with the extras the notebook needs.

The extras follow from the imports: those of the notebook's cells, and those of the modules of
``course_lib`` that it reaches. As long as the repository's address in ``_config.yml`` is the
placeholder, a name that nobody can own, the cell fetches nothing by itself and says what to set.
"""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import jupytext
import nbformat
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from course_lib.files import read_text, write_text

ROOT = Path(__file__).resolve().parents[1]
FOR_DEVELOPERS = {"book", "test"}
"""Extras that no reader of a notebook needs."""
FIRST_CELL = re.compile(
    r"```\{code-cell\} ipython3\n(?::[^\n]*\n)*\n*(?P<source>.*?)\n```", re.DOTALL
)
TEMPLATE = """\
# Installs the course where it is missing: on Colab, for one.
import importlib.util
import os
import pathlib

needed = [{needed}]
missing = [n for n in needed if not importlib.util.find_spec(n)]
source = os.environ.get("COURSE_SOURCE", "{address}")
if not source and pathlib.Path("../course_lib").is_dir():
    source = ".."  # this notebook lies in a copy of the repository
if missing and not source:
    raise ImportError(
        f"{{missing}} not installed. Say where the course is: run the line\\n"
        "%env COURSE_SOURCE=...\\nwith the path of its wheel or repository, "
        "or an address for pip (git+https:...), then run this cell again."
    )
if missing:
    if "://" not in source:
        source = pathlib.Path(source).resolve().as_uri()
    %pip install --quiet "course_lib{extras} @ {{source}}"
"""


def repository_address() -> str:
    """What pip installs the course from; empty while the address is the placeholder.

    A name under ``.invalid`` belongs to nobody and never will (RFC 2606, section 2).
    """
    repository = yaml.safe_load(read_text(ROOT / "_config.yml"))["repository"]
    if re.match(r"https?://[^/]+\.invalid(/|$)", repository["url"]):
        return ""
    return f"git+{repository['url']}@{repository['branch']}"


def imports_of_cell(source: str) -> set[str]:
    """The modules that a cell imports, with dots; magics are no Python and import none.

    ``from a import b`` gives a and a.b, for b may be a module.
    """
    return _imports(TransformerManager().transform_cell(source))


def _imports(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@cache
def _imports_of_module(module: str) -> set[str]:
    """What a module of this project imports; nothing where the name is not a module's."""
    path = ROOT / module.replace(".", "/")
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.exists():
            return _imports(read_text(file))
    return set()


def packages_needed(sources: list[str]) -> set[str]:
    """Names of the packages outside the standard library that the sources import.

    Modules of ``course_lib`` are followed to what they import themselves.
    """
    waiting = {name for source in sources for name in imports_of_cell(source)}
    seen, packages = set(), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names:
            packages.add(top)
        if top == "course_lib":
            parents = {name.rsplit(".", i)[0] for i in range(name.count(".") + 1)}
            waiting |= set().union(*map(_imports_of_module, parents)) - seen
    return packages


@cache
def extras_of_distributions() -> dict[str, str | None]:
    """Distribution -> the extra that brings it; None for what the package always brings.

    Core dependencies win, then the extras in pyproject's order; those for developers do not count.
    """
    project = tomllib.loads(read_text(ROOT / "pyproject.toml"))["project"]
    extras = {}
    for requirement in project["dependencies"]:
        extras[_canonical(requirement)] = None
    for extra, requirements in project["optional-dependencies"].items():
        if extra not in FOR_DEVELOPERS:
            for requirement in requirements:
                extras.setdefault(_canonical(requirement), extra)
    return extras


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())  # reads every installed package: once


def _canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def extras_needed(packages: set[str]) -> dict[str, str]:
    """Package -> extra, for those of ``packages`` that come with an extra.

    Raises:
        ValueError: a package that neither the dependencies nor an extra name.
    """
    known, found = extras_of_distributions(), {}
    for package in sorted(packages - {"course_lib", "IPython"}):  # a notebook runs in IPython
        distributions = _distributions().get(package, [package])
        names = {_canonical(d) for d in distributions} & known.keys()
        if not names:
            raise ValueError(
                f"{package} is imported, and no dependency or extra of pyproject.toml brings it: "
                "add it to the extra that it belongs to."
            )
        extras = {known[name] for name in names}
        if None not in extras:
            found[package] = min(extras)
    return found


def install_cell(notebook: nbformat.NotebookNode, address: str | None = None) -> str:
    """The source that the notebook's first code cell must have.

    Args:
        address: for pip; by default what ``_config.yml`` says, and empty while that is nobody's.
    """
    sources = [c.source for c in notebook.cells if c.cell_type == "code"][1:]
    packages = extras_needed(packages_needed(sources))
    extras = ",".join(sorted(set(packages.values())))
    return TEMPLATE.format(
        needed=", ".join(f'"{name}"' for name in ["course_lib", *packages]),
        extras=f"[{extras}]" if extras else "",
        address=repository_address() if address is None else address,
    ).strip()


def fill(content: str) -> str:
    """The text of a chapter (MyST) with its install cell written anew.

    Raises:
        ValueError: the first code cell is another one.
    """
    cell = FIRST_CELL.search(content)
    if not cell or "%pip install" not in cell["source"]:
        raise ValueError(
            "The first code cell is not the install cell: copy that of another chapter."
        )
    source = install_cell(jupytext.reads(content, fmt="md:myst"))
    block = f"```{{code-cell}} ipython3\n:tags: [hide-cell]\n\n{source}\n```"
    return content[: cell.start()] + block + content[cell.end() :]


def main() -> None:
    for text in sorted((ROOT / "book").glob("[0-9][0-9]_*.md")):
        content = read_text(text)
        if (new := fill(content)) != content:
            write_text(text, new)
            print(f"{text.name}: install cell written")


if __name__ == "__main__":
    main()
