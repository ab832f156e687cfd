"""Setting up: whatever is missing, one clear sentence says what and what to do; and whatever the
user's settings say, packages go into .venv."""

import ast
import os
import re
import shutil
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import setup_venv

SOURCE = Path(setup_venv.__file__)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A project of its own, so that nothing here touches the real .venv."""
    monkeypatch.setattr(setup_venv, "ROOT", str(tmp_path))
    monkeypatch.setattr(setup_venv, "VENV", str(tmp_path / ".venv"))
    monkeypatch.setattr(setup_venv, "PYTHON", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setattr(setup_venv, "STAMP", str(tmp_path / ".venv" / "course-ready"))
    (tmp_path / "tools").mkdir()
    for name in setup_venv.SOURCES:
        (tmp_path / name).write_text("torch==2.13.0\n", encoding="utf-8")
    return tmp_path


def message_of(call, capsys) -> str:
    """What is said when ``call`` stops: one line, for people, without a traceback."""
    with pytest.raises(SystemExit) as stopped:
        call()
    assert stopped.value.code == 1
    text = capsys.readouterr().err
    assert text.endswith("\n") and text.count("\n") == 1 and "Traceback" not in text
    return text


def free_bytes(monkeypatch, free: int) -> None:
    monkeypatch.setattr(setup_venv.shutil, "disk_usage", lambda path: Usage(10**12, 0, free))


def test_an_old_python_can_read_the_file():
    """The grammar of Python 3.6, and no f-strings, which 3.5 does not know."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 6))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)]


def test_only_the_standard_library_is_imported():
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imported <= sys.stdlib_module_names
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]


def test_a_too_old_python_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 8, 10))
    monkeypatch.setattr(setup_venv.platform, "python_version", lambda: "3.8.10")
    monkeypatch.setattr(setup_venv.shutil, "which", lambda name: None)
    assert message_of(setup_venv.main, capsys) == (
        "Python 3.8.10 is too old: install Python 3.11 or newer, then run make again.\n"
    )


def test_a_newer_python_beside_the_old_one_is_taken(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 8, 10))
    there = {"python3.9": "/a/python3.9", "python3.11": "/a/python3.11"}
    monkeypatch.setattr(setup_venv.shutil, "which", there.get)
    assert setup_venv.find_python() == "/a/python3.11"


def test_this_python_is_taken_when_it_is_new_enough(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 11, 0))
    assert setup_venv.find_python() == sys.executable


def test_a_missing_venv_module_is_named(elsewhere, capsys):
    """A Python that cannot import venv: a real program that fails as it would."""
    python = elsewhere / "python3"
    python.write_text("#!/bin/sh\necho 'No module named venv' >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    text = message_of(lambda: setup_venv.make_venv(str(python)), capsys)
    assert text.startswith("The venv module is missing: install it")
    assert "apt install python3-venv" in text and text.endswith("then run make again.\n")


def test_a_too_full_disk_is_named_before_anything_is_made(elsewhere, monkeypatch, capsys):
    free_bytes(monkeypatch, setup_venv.NEEDED_BYTES - 1)
    text = message_of(setup_venv.main, capsys)
    assert text.startswith("The disk is too full: installing needs 3 GB free in ")
    assert str(elsewhere) in text and "Make room, then run make again." in text
    assert not (elsewhere / ".venv").exists()


@pytest.mark.parametrize(
    ("free", "reason"), [(10**8, "the disk is full"), (10**10, "see pip's lines above")]
)
def test_a_failed_installation_leaves_no_stamp_and_says_why(elsewhere, monkeypatch, capsys, free,
                                                            reason):  # fmt: skip
    """The disk has room when it is looked at first, and ``free`` bytes when pip has failed."""
    left = [10**11, free]
    monkeypatch.setattr(setup_venv.shutil, "disk_usage",
                        lambda path: Usage(10**12, 0, left.pop(0)))  # fmt: skip
    monkeypatch.setattr(setup_venv, "make_venv", lambda python: None)
    monkeypatch.setattr(setup_venv, "install_torch", lambda: True)
    monkeypatch.setattr(setup_venv, "pip", lambda *args: False)
    text = message_of(setup_venv.main, capsys)
    assert reason in text and "What is there is kept: run make again." in text
    assert not (elsewhere / ".venv" / "course-ready").exists()


def test_what_is_ready_is_left_alone_until_a_source_changes(elsewhere, monkeypatch):
    """The second run does nothing; a changed lock, or a copied folder, is set up again."""
    installed = []

    def make_venv(python):
        (elsewhere / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
        Path(setup_venv.PYTHON).touch()

    free_bytes(monkeypatch, 10**11)
    monkeypatch.setattr(setup_venv, "make_venv", make_venv)
    monkeypatch.setattr(setup_venv, "install_torch", lambda: True)
    monkeypatch.setattr(setup_venv, "pip", lambda *args: installed.append(args) or True)
    setup_venv.main()
    assert len(installed) == 2 and setup_venv.is_ready()
    setup_venv.main()
    assert len(installed) == 2
    (elsewhere / "requirements.lock").write_text("torch==2.14.0\n", encoding="utf-8")
    assert not setup_venv.is_ready()
    setup_venv.main()
    assert len(installed) == 4 and setup_venv.is_ready()
    copy = shutil.copytree(elsewhere, elsewhere.parent / "copy")
    monkeypatch.setattr(setup_venv, "ROOT", str(copy))
    monkeypatch.setattr(setup_venv, "STAMP", str(copy / ".venv" / "course-ready"))
    assert not setup_venv.is_ready(), "a .venv points at the place where it was made"


def make_wheel(folder: Path, name: str) -> None:
    """A wheel with one module that holds its own name: a zip archive of four files."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"name = {name!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL",
                       "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any")  # fmt: skip
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    """A real .venv with a real pip, made as make makes it."""
    folder = tmp_path_factory.mktemp("real") / ".venv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup_venv, "VENV", str(folder))
        patch.setattr(setup_venv, "PYTHON", str(folder / "bin" / "python"))
        patch.setenv("PYTHONHOME", "/nowhere")
        patch.setenv("PYTHONPATH", "/nowhere")
        setup_venv.make_venv(sys.executable)
    return folder


@pytest.mark.parametrize("settings", ["file", "environment"])
def test_packages_go_into_the_venv_whatever_pip_is_told(elsewhere, venv, monkeypatch, settings):
    """A user who has set ``user``, ``target``, ``prefix`` and more for all of pip; the folder of
    wheels comes from the same settings and is used."""
    name = f"tiny_{settings}"
    make_wheel(elsewhere / "wheels", name)
    monkeypatch.setattr(setup_venv, "VENV", str(venv))
    monkeypatch.setattr(setup_venv, "PYTHON", str(venv / "bin" / "python"))
    for variable in [v for v in os.environ if v.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    options = {"user": "yes", "target": elsewhere / "target", "prefix": elsewhere / "prefix",
               "root": elsewhere / "root", "no-index": "yes", "dry-run": "yes",
               "find-links": elsewhere / "wheels"}  # fmt: skip
    if settings == "file":
        lines = "".join(f"{option} = {value}\n" for option, value in options.items())
        (elsewhere / "pip.conf").write_text(f"[install]\n{lines}", encoding="utf-8")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(elsewhere / "pip.conf"))
    else:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        for option, value in options.items():
            monkeypatch.setenv(f"PIP_{option.upper().replace('-', '_')}", str(value))
        monkeypatch.setenv("PIP_PYTHON", "/nowhere/python")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    assert setup_venv.pip(name)
    assert list(venv.glob(f"lib/python*/site-packages/{name}.py"))
    assert not [p for p in elsewhere.iterdir() if p.name in ("target", "prefix", "root")]


def test_what_pip_would_take_is_asked_in_the_same_way(elsewhere, venv, monkeypatch):
    """With ``user`` set, the question failed: on Linux a CUDA build was feared for nothing."""
    make_wheel(elsewhere / "wheels", "torch")
    monkeypatch.setattr(setup_venv, "VENV", str(venv))
    monkeypatch.setattr(setup_venv, "PYTHON", str(venv / "bin" / "python"))
    monkeypatch.setattr(setup_venv.platform, "system", lambda: "Linux")
    for name, value in (("USER", "1"), ("NO_INDEX", "1"), ("FIND_LINKS", elsewhere / "wheels")):
        monkeypatch.setenv(f"PIP_{name}", str(value))
    assert setup_venv.default_build_is_small("torch==1.0")


def test_the_lock_names_torch_exactly(monkeypatch):
    monkeypatch.setattr(setup_venv, "ROOT", str(SOURCE.parents[1]))
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", setup_venv.locked_torch())
