"""Files are whole or not there, and UTF-8 everywhere, whatever the locale."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course_lib import files
from course_lib.files import read_text, replacing, write_bytes, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT / "conftest.py", *(path for folder in ("course_lib", "tools", "tests", "benchmarks")
                                   for path in sorted((ROOT / folder).rglob("*.py")))]  # fmt: skip
KOREAN = "강화 학습: α ≤ β\r\nzwei\nthree"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- whole or not at all ------------------------------------------------------------------------


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a.txt", "one\n")
    write_text(tmp_path / "a.txt", "two\n")
    write_bytes(str(tmp_path / "b.bin"), b"\0\xff")
    assert read_text(tmp_path / "a.txt") == "two\n"
    assert (tmp_path / "b.bin").read_bytes() == b"\0\xff"
    assert names(tmp_path) == ["a.txt", "b.bin"]


def test_texts_are_utf_8_and_keep_their_line_ends(tmp_path):
    """On Windows ``\\n`` would become ``\\r\\n``. Read, every line end is ``\\n``."""
    write_text(tmp_path / "a.txt", KOREAN)
    assert (tmp_path / "a.txt").read_bytes() == KOREAN.encode("utf-8")
    assert read_text(tmp_path / "a.txt") == KOREAN.replace("\r\n", "\n")


def test_json_keeps_its_letters(tmp_path):
    write_json(tmp_path / "a.json", {"보상": [1, 2.5, None]})
    assert read_text(tmp_path / "a.json") == (
        '{\n "보상": [\n  1,\n  2.5,\n  null\n ]\n}\n'
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_half_way_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error) if isinstance(error, Exception) else error), \
            replacing(path) as part:  # fmt: skip
        part.write_bytes(b"ne")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_without_an_old_file_a_failure_leaves_none(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.bin") as part:
        part.write_bytes(b"ne")
        raise ZeroDivisionError
    with pytest.raises(TypeError):  # found out before anything is written
        write_json(tmp_path / "a.json", {"a": object()})
    assert names(tmp_path) == []


def test_the_new_file_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    """Synced, then replaced: the other way round a power cut could leave an empty file."""
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: order.append("fsync") or fsync(fd))
    monkeypatch.setattr(files.os, "replace", lambda a, b: order.append("replace") or replace(a, b))
    write_bytes(tmp_path / "a", b"1")
    assert order == ["fsync", "replace"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moment", ["writing", "replacing"])
def test_a_killed_process_leaves_the_old_file_whole(tmp_path, moment):
    """SIGKILL with half of the bytes written, and with all of them but the name."""
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    if (child := os.fork()) == 0:
        def kill(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            if moment == "replacing":
                os.replace = kill
            with replacing(path) as part:
                part.write_bytes(b"ne")
                if moment == "writing":
                    kill()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_bytes(path, b"new")  # and what it left is in nobody's way
    assert path.read_bytes() == b"new"


def test_several_files_are_all_written_before_the_first_is_replaced(tmp_path):
    """The second fails: both old ones stay."""
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(one) as a, replacing(two) as b:
        a.write_bytes(b"new")
        b.write_bytes(b"new")
        raise ZeroDivisionError
    assert read_text(one) == read_text(two) == "old" and names(tmp_path) == ["one", "two"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's always full device")
def test_a_full_disk_leaves_the_old_model_whole(tmp_path):
    """The weights of ``save_pretrained`` go to a full device; a model is two files that fit."""
    from training_runs import tiny_llama

    from course_lib.models import from_pretrained, save_pretrained

    old = tiny_llama(0)
    save_pretrained(old, tmp_path)
    (tmp_path / f"config.json.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(OSError):
        save_pretrained(tiny_llama(1), tmp_path)
    read = from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(read[name], value) for name, value in old.state_dict().items())
    assert names(tmp_path) == ["config.json", "model.safetensors"]


def test_nobody_else_replaces_files():
    """``os.replace`` and ``.rename`` stand in one module, and where checkpoints take turns."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(read_text(path))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.replace", "os.rename"):
                found.add(path.relative_to(ROOT).as_posix())
    package = {name for name in found if not name.startswith("tests/")}
    assert package - {"tools/setup_venv.py"} == {  # that one has the standard library alone
        "course_lib/files.py", "course_lib/checkpoints.py"}


# --- UTF-8 --------------------------------------------------------------------------------------


def without_encoding(source: str) -> list[int]:
    """Lines that open, read or write text in the encoding of the locale."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in ("read_text", "write_text"):
            own = isinstance(called.value, ast.Name) and called.value.id == "files"
            positional = 1 if called.attr == "read_text" else 2
            if not own and len(node.args) < positional:
                lines.append(node.lineno)
        elif isinstance(called, ast.Name) and called.id == "open":
            modes = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "mode")]
            if not any(isinstance(m, ast.Constant) and "b" in m.value for m in modes):
                lines.append(node.lineno)
    return lines


def test_the_search_finds_what_it_should():
    bad = ['open("a")', 'open("a", "w", newline="")', 'open("a", mode="r")', "p.read_text()",
           'p.read_text(errors="ignore")', "p.write_text(t)"]  # fmt: skip
    good = ['open("a", "rb")', 'open("a", mode="wb")', 'open("a", encoding="utf-8")',
            'p.read_text("utf-8")', 'p.write_text(t, encoding="utf-8")', "read_text(p)",
            "files.write_text(p, t)"]  # fmt: skip
    assert without_encoding("\n".join(bad)) == [1, 2, 3, 4, 5, 6]
    assert without_encoding("\n".join(good)) == []


def test_no_text_is_opened_in_the_encoding_of_the_locale():
    """Under a Korean locale (EUC-KR) that failed on the first dash."""
    found = {path.relative_to(ROOT).as_posix(): lines for path in SOURCES
             if (lines := without_encoding(read_text(path)))}  # fmt: skip
    assert found == {}


def test_a_ledger_is_written_and_read_under_a_locale_without_letters(tmp_path):
    """The C locale with UTF-8 mode off: text is ASCII to whoever does not say otherwise."""
    code = f"""
import locale
from pathlib import Path
from course_lib import claims, training
from course_lib.checkpoints import MetricsFile
from course_lib.files import read_text, write_json
from course_lib.shipped import model_path
folder = Path({str(tmp_path)!r})
assert locale.getencoding() == "ANSI_X3.4-1968", locale.getencoding()
try:
    (folder / "control").write_text({KOREAN!r})
except UnicodeEncodeError:
    print("the control fails")
write_json(folder / "ledger.json", [{{"claim": {KOREAN!r}}}])
MetricsFile(folder / "m.csv", []).append({{"보상": 1}})
assert "강화 학습" in read_text(folder / "ledger.json") and "보상" in read_text(folder / "m.csv")
model_path("base")
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
                    "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}  # fmt: skip
    script = tmp_path / "script.py"
    write_text(script, code)
    result = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True,
                            encoding="utf-8")  # fmt: skip
    assert (result.stdout, result.returncode) == ("the control fails\n", 0), result.stderr
