"""Imports point one way: a table says what may import what; read off the syntax trees."""

import ast
from pathlib import Path

import pytest

from course_lib import _PUBLIC

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "course_lib"
MODULES = sorted(PACKAGE.rglob("*.py"))
TORCH_ONLY = {"torch", "__future__"}
STANDARD = {"json", "os", "pathlib", "dataclasses", "collections", "functools", "inspect", "math",
            "typing"}  # fmt: skip
SAMPLING = {"ops", "models", "generation", "rollout", "live_rollouts", "completion",
            "measuring", "rows", "chat", "training", "checkpoints", "processes", "optim", "runtime",
            "files"}  # fmt: skip
"""What algorithms build on: none of it knows an algorithm or the micro-world."""
BOOK = {"claims", "notebook", "plotting"}


def top(path: Path) -> str:
    """The module or package right below course_lib to which a file belongs."""
    return path.stem if path.parent == PACKAGE else path.relative_to(PACKAGE).parts[0]


EVERYTHING = {top(path) for path in MODULES} - {"__init__"}
MAY_IMPORT = {
    # what everything stands on
    "ops": set(),
    "files": set(),
    "runtime": set(),
    "measuring": set(),
    "optim": set(),
    "models": {"files"},
    "checkpoints": {"files"},
    "processes": {"runtime"},
    "training": {"checkpoints", "files", "ops", "processes", "runtime"},
    # from texts to rows to samples
    "rows": {"ops"},
    "generation": {"ops", "runtime"},
    "rollout": {"generation", "ops", "rows", "runtime"},
    "completion": {"generation", "measuring", "rollout", "runtime"},
    "chat": {"completion", "generation", "measuring", "ops", "rows"},
    "rankings": {"chat", "rows"},
    "pairs": {"chat", "ops", "rows"},
    "live_rollouts": {"generation", "models", "ops", "rollout", "rows", "runtime"},
    # algorithms: never each other. Denoising is a part of pretraining that is a file of its own.
    "sft": SAMPLING,
    "reward": SAMPLING | {"rankings"},
    "ppo": SAMPLING,
    # The stream of PPO's rollouts is a part of PPO that is a file of its own; so is GRPO's.
    "ppo_rollouts": SAMPLING | {"ppo"},
    "dpo": SAMPLING | {"pairs"},
    "grpo": SAMPLING,
    "grpo_rollouts": SAMPLING | {"grpo"},
    "bradley_terry": set(),
    # PEFT: the methods in files of their own, put together in peft
    "wrapped_linear": {"optim"},
    "lora_layer": {"wrapped_linear"},
    "lora": {"lora_layer", "wrapped_linear"},
    "adapter_rows": {"lora"},
    "bottleneck": {"wrapped_linear"},
    "soft_prompts": {"models", "wrapped_linear"},
    "adapter_files": {"files", "lora", "lora_layer", "models", "soft_prompts", "wrapped_linear"},
    "peft": {"adapter_files", "adapter_rows", "bottleneck", "lora", "lora_layer", "optim",
             "soft_prompts", "wrapped_linear"},
    # what an algorithm should come to, on a policy small enough to count
    "enumeration": {"ops", "models", "rollout", "rows"},
    "pretraining": SAMPLING | {"denoising"},
    "denoising": set(),
    "prompting": SAMPLING,
    # The filter is measured on the crawl of the micro-world, and keeps its test items out.
    "curation": SAMPLING | {"world"},
    # the three steps of RLHF, put together on the micro-world's question with many answers
    "rlhf": SAMPLING | {"rankings", "reward", "ppo", "ppo_rollouts", "dpo", "pairs", "sft",
                        "shipped", "world"},
    # GRPO with verifiers, put together on the micro-world's sums
    "reasoning": SAMPLING | {"grpo", "grpo_rollouts", "sft", "world"},
    # the micro-world, and the models that were made of it
    "world": SAMPLING | {"shipped"},
    "shipped": {"files", "models", "runtime"},
    # the book's, and what stands on top
    "plotting": set(),
    "notebook": set(),
    "studies": EVERYTHING - {"claims", "recipes"},
    "claims": {"files", "measuring", "studies"},
    "recipes": EVERYTHING - {"claims", "studies"},
    "__init__": set(),
}
"""Module or package of course_lib -> those that it may import. A new one is entered here."""
BORDER = {"models/configs.py", "models/weights.py", "shipped/__init__.py", "world/tokenizer.py",
          "recipes/base.py"}  # fmt: skip
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
            if node.module == "course_lib":  # its modules, and what it takes from them
                names |= {_PUBLIC.get(a.name, f"course_lib.{a.name}") for a in node.names}
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
                                                        "heads", "seq2seq"))):  # fmt: skip
        names = imports(PACKAGE / name)
        assert tops(names) <= TORCH_ONLY | STANDARD | {"course_lib"}, name
        assert own(names) <= ({"models"} if name != "ops.py" else set()), name


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_imports_what_the_table_allows(path):
    assert top(path) in MAY_IMPORT, (
        f"{relative(path)} is new: enter course_lib.{top(path)} in MAY_IMPORT, with what it needs."
    )
    extra = own(imports(path)) - MAY_IMPORT[top(path)] - {top(path)}
    assert not extra, f"{relative(path)} imports {sorted(extra)}, which the table does not allow."


def test_the_table_names_what_there_is_and_allows_no_circle():
    """Taking away, again and again, what imports nothing that is left empties the table; and no
    name of it is a module that is gone."""
    assert set(MAY_IMPORT) == {top(path) for path in MODULES}
    left = {name: allowed - {name} for name, allowed in MAY_IMPORT.items()}
    while free := [name for name, allowed in left.items() if not allowed & set(left)]:
        left = {name: allowed for name, allowed in left.items() if name not in free}
    assert not left, f"These may import each other in a circle: {sorted(left)}"


PEFT = {"wrapped_linear", "lora_layer", "lora", "adapter_rows", "bottleneck", "soft_prompts",
        "adapter_files"}  # fmt: skip
"""Files that are parts of PEFT."""
ALGORITHMS = PEFT | {"sft", "pretraining", "denoising", "curation", "prompting",
              "reward", "ppo", "ppo_rollouts", "dpo", "grpo", "grpo_rollouts", "peft",
              "rag"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_only_the_top_knows_algorithms(name):
    """The table itself keeps the rules: no algorithm imports another, and neither the world nor
    what algorithms build on imports one; studies and recipes may, and ``rlhf`` and ``reasoning``,
    which put some together on the micro-world."""
    allowed = MAY_IMPORT[name] - {name}
    if name in ("studies", "recipes", "rlhf", "reasoning"):
        return
    assert not allowed & {"recipes", *BOOK}, name
    parts = {"pretraining": {"denoising"}, "ppo_rollouts": {"ppo"},
             "grpo_rollouts": {"grpo"}, **dict.fromkeys(PEFT | {"peft"}, PEFT)}  # fmt: skip
    assert allowed & ALGORITHMS <= parts.get(name, set())
    if name in SAMPLING | ALGORITHMS - {"curation"}:
        assert not allowed & {"world", "shipped", "studies"}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from course_lib.sft import sft_loss", {"sft"}),
        ("import course_lib.world.tasks", {"world"}),
        ("from course_lib import rows, sft", {"rows", "sft"}),
        ("from course_lib import load_model", {"shipped"}),
        ("def f():\n    from course_lib.recipes.base import Recipe", {"recipes"}),
        ("import torch", set()),
    ],
)
def test_every_way_to_import_is_seen(tmp_path, source, names):
    (tmp_path / "x.py").write_text(source, encoding="utf-8")
    assert own(imports(tmp_path / "x.py")) == names


def test_world_generators_need_no_torch():
    """Documents come from the standard library alone, so the corpus runs in light processes."""
    for name in ("lexicon", "heldout", "facts", "arithmetic", "tasks", "lists", "prose",
                 "documents", "foreign", "sites", "crawl", "instructions", "wordings",
                 "verifiers"):  # fmt: skip
        assert "torch" not in tops(imports(PACKAGE / "world" / f"{name}.py"))


def test_importing_the_package_is_light():
    """``import course_lib`` loads neither torch nor transformers."""
    import subprocess
    import sys

    code = "import course_lib, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout == "False False\n", out.stderr
