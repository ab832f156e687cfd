"""Imports point one way: what may import what, read off the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "course_lib"
MODULES = sorted(PACKAGE.rglob("*.py"))
TORCH_ONLY = {"torch", "__future__"}
STANDARD = {"json", "os", "pathlib", "dataclasses", "collections", "functools", "math", "typing"}
INFRASTRUCTURE = {"ops", "models", "generation", "completion", "measuring", "rows",
                  "chat", "training", "checkpoints", "processes", "optim", "runtime",
                  "files"}  # fmt: skip
ALGORITHMS = {"sft"}
BORDER = {"models/weights.py", "shipped/__init__.py", "world/tokenizer.py", "recipes/base.py"}
"""The only modules that may import transformers: where weights or tokenizers cross over."""


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module)
    return names


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def own(names: set[str]) -> set[str]:
    """The first part below course_lib: {"ops", "models", ...}."""
    return {n.split(".")[1] for n in names if n.startswith("course_lib.")}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_only_the_border_imports_transformers(path):
    if relative(path) not in BORDER:
        assert "transformers" not in tops(imports(path))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_the_package_needs_no_library_that_it_teaches_beside(path):
    """peft, trl, torchrl belong in notebooks, tests and benchmarks; so do the test tools."""
    forbidden = {"peft", "trl", "torchrl", "pytest", "hypothesis", "tests", "benchmarks", "tools"}
    assert not tops(imports(path)) & forbidden


def test_ops_and_layers_import_torch_alone():
    for name in ("ops.py", *(f"models/{m}.py" for m in ("base", "layers", "decoder", "encoder",
                                                        "seq2seq"))):  # fmt: skip
        names = imports(PACKAGE / name)
        assert tops(names) <= TORCH_ONLY | STANDARD | {"course_lib"}, name
        assert own(names) <= ({"models"} if name != "ops.py" else set()), name


def test_infrastructure_knows_no_world():
    for name in INFRASTRUCTURE:
        paths = [PACKAGE / f"{name}.py"]
        if not paths[0].exists():
            paths = list((PACKAGE / name).rglob("*.py"))
        for path in paths:
            assert own(imports(path)) <= INFRASTRUCTURE, path


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_algorithm_knows_infrastructure_alone(name):
    """Neither the world nor another algorithm."""
    assert own(imports(PACKAGE / f"{name}.py")) <= INFRASTRUCTURE


def test_the_world_knows_no_algorithm():
    allowed = INFRASTRUCTURE | {"world"}
    for path in sorted((PACKAGE / "world").glob("*.py")):
        extra = {"shipped"} if path.name == "evaluate.py" else set()
        assert own(imports(path)) <= allowed | extra, path.name


def test_world_generators_need_no_torch():
    """Documents come from the standard library alone, so the corpus runs in light processes."""
    for name in ("lexicon", "heldout", "facts", "arithmetic", "tasks", "lists", "prose",
                 "documents", "foreign", "sites", "crawl", "instructions", "wordings"):  # fmt: skip
        assert "torch" not in tops(imports(PACKAGE / "world" / f"{name}.py"))


def test_importing_the_package_is_light():
    """``import course_lib`` loads neither torch nor transformers."""
    import subprocess
    import sys

    code = "import course_lib, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout == "False False\n", out.stderr
