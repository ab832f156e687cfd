"""The README is true: its commands exist, its tree is there; nothing names another place."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tracked() -> list[str]:
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT,
                         capture_output=True, text=True)  # fmt: skip
    if out.returncode:
        pytest.skip("not a git checkout")
    return [line for line in out.stdout.splitlines() if (ROOT / line).exists()]


def test_the_first_commands_are_book_and_test():
    commands = re.findall(r"^make (\w+)", README, re.M)
    assert commands[:2] == ["book", "test"]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(commands) | set(re.findall(r"`make (\w+)`", README)) <= targets


def test_every_entry_of_the_tree_exists_and_none_is_missing():
    tree = re.search(r"```text\n(.*?)```", README, re.S)[1]
    entries = re.findall(r"^(\S+)", tree, re.M)
    for entry in entries:
        assert (ROOT / entry).exists(), f"the README's tree names {entry}, which is not there"
    shown = {e.rstrip("/").split("/")[0] for e in entries}
    top = {path.split("/")[0] for path in tracked()}
    assert top - shown <= {".gitignore", "conftest.py"}, top - shown


def test_its_picture_exists():
    for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README):
        assert (ROOT / path).stat().st_size > 10_000


def test_the_repository_address_stands_in_one_place():
    url = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    holders = set()
    for name in tracked():
        path = ROOT / name
        if path.suffix in (".png", ".safetensors"):
            continue
        if url in path.read_text(encoding="utf-8", errors="ignore"):
            holders.add(name)
    derived = {n for n in holders if re.fullmatch(r"book/\d\d_\w+\.(md|ipynb)", n)}
    assert holders - derived == {"_config.yml"}


def test_ci_calls_the_test_command():
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    code = [x for x in lines if x.strip() and not x.startswith("#")]
    assert code[-1] == "exec make test" and len(code) == 3


def test_no_file_names_a_place_outside_the_project():
    places = "/ro" + "ot/", ".." + "/shared", ".libr" + "ary/"
    pattern = re.compile(r"(?<![\w.])/wo(?:rk)/|" + "|".join(map(re.escape, places)))
    found = []
    for name in tracked():
        path = ROOT / name
        if path.suffix in (".png", ".safetensors"):
            continue
        if pattern.search(path.read_text(errors="ignore", encoding="utf-8")):
            found.append(name)
    assert found == []
