"""Shipped models: every byte checked before it is loaded, and errors that say what to do."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import course_lib
from course_lib import shipped
from course_lib.files import read_text, write_text
from course_lib.models import Llama, LlamaConfig, save_pretrained
from course_lib.world.tokenizer import save_tokenizer, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def model():
    config = LlamaConfig(300, 1, 2, 2, 8, 12, 32)
    return Llama(config, torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def base_folder(tmp_path, monkeypatch, model):
    """A tiny stage "base" in a folder of its own, checksums included."""
    monkeypatch.setattr(shipped, "HERE", tmp_path)
    monkeypatch.setattr(shipped, "CHECKSUMS", tmp_path / "checksums.json")
    folder = tmp_path / "base"
    save_pretrained(model, folder, eos_token_id=0, pad_token_id=1)
    save_tokenizer(train_tokenizer(["a dog and a cat"], 300), folder)
    shipped.write_checksums()
    return folder


def test_checksums_are_sizes_and_sha_256_of_every_file(base_folder):
    """SHA-256 of "abc" from FIPS 180-4; half-written files and other stages are left out."""
    (base_folder / "README.md").write_text("abc", encoding="utf-8")
    (base_folder / "README.part").write_text("half", encoding="utf-8")
    (base_folder.parent / "instruct").mkdir()
    shipped.write_checksums()
    sums = json.loads(shipped.CHECKSUMS.read_text(encoding="utf-8"))
    assert list(sums) == ["base"] and set(sums["base"]) >= {*FILES, "README.md"}
    assert sums["base"]["README.md"] == [
        3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    ]  # fmt: skip
    assert "README.part" not in sums["base"]
    assert not list(base_folder.parent.glob("*.part"))


def test_a_whole_model_loads_with_its_weights_and_a_tokenizer_that_pads_left(base_folder, model):
    loaded, tokenizer = course_lib.load_model("base", "cpu")
    assert course_lib.model_path() == base_folder
    assert not loaded.training and loaded.device.type == "cpu"
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    batch = tokenizer(["dog", "a dog and a cat"], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].all()
    assert tokenizer.eos_token_id == loaded_eos(base_folder) == 0


def test_the_command_writes_the_checksums_that_stand_in_the_package(tmp_path):
    """In a copy of the package whose list is gone."""
    shutil.copytree(ROOT / "course_lib", tmp_path / "course_lib",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    sums = tmp_path / "course_lib" / "shipped" / "checksums.json"
    sums.unlink()
    subprocess.run([sys.executable, "-m", "course_lib.shipped"], cwd=tmp_path, check=True,
                   env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert sums.read_bytes() == (ROOT / "course_lib" / "shipped" / "checksums.json").read_bytes()


def loaded_eos(folder) -> int:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["eos_token_id"]


def test_load_model_from_reads_any_folder_unchecked(base_folder, tmp_path):
    moved = base_folder.rename(tmp_path / "elsewhere")
    shipped.CHECKSUMS.unlink()
    assert shipped.load_model_from(moved, "cpu")[0].config.vocab_size == 300


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated or was changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"), "wrong checksum"),
        (lambda path: path.write_bytes(b""), "has 0 bytes instead of"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_loaded(base_folder, name, damage, message):
    damage(base_folder / name)
    with pytest.raises(ValueError, match=message) as error:
        course_lib.load_model("base", "cpu")
    assert str(base_folder / name) in str(error.value)
    assert "pip install --force-reinstall course_lib" in str(error.value)
    assert "make model" in str(error.value)


def test_a_stage_that_is_not_there_is_named_with_those_that_are(base_folder):
    with pytest.raises(ValueError, match="Unknown stage 'bass': the stages are base, instruct"):
        course_lib.load_model("bass")
    with pytest.raises(ValueError, match=r"'instruct' is not shipped .*\(shipped: base\)"):
        course_lib.load_model("instruct")
    shipped.CHECKSUMS.unlink()
    with pytest.raises(ValueError, match=r"\(shipped: none\)\. Choose .* with make model"):
        course_lib.load_model("base")


def test_a_damaged_list_of_checksums_says_so(base_folder):
    write_text(shipped.CHECKSUMS, read_text(shipped.CHECKSUMS)[:50])
    with pytest.raises(ValueError, match=r"checksums\.json is damaged .* Install it again"):
        course_lib.load_model("base")


def test_an_unknown_device_is_refused(base_folder):
    with pytest.raises(ValueError, match="Unknown device 'tpu'"):
        course_lib.load_model("base", "tpu")


# --- checkouts ----------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    """What git says, whatever the settings of the user and the machine."""
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    names = {f"GIT_{who}_{what}": "nobody@example.invalid"
             for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True,
        env={**kept, **settings, **names},
    ).stdout  # fmt: skip


def checked_out_with_crlf(tmp_path: Path, attributes: bool) -> Path:
    """The shipped folders and the script, committed and cloned as git for Windows is set up."""
    source, clone = tmp_path / "source", tmp_path / "clone"
    shutil.copytree(ROOT / "course_lib" / "shipped", source / "course_lib" / "shipped",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    (source / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", source / ".ci" / "run")
    if attributes:
        shutil.copy(ROOT / ".gitattributes", source)
    git(source, "init", "-q")
    git(source, "add", "-f", ".")
    git(source, "commit", "-q", "-m", "as it is")
    git(tmp_path, "clone", "-q", "-c", "core.autocrlf=true", str(source), str(clone))
    return clone


def changed_files(clone: Path) -> list[str]:
    """Shipped files whose bytes are not those of the checksums."""
    folder = clone / "course_lib" / "shipped"
    sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
    return sorted(
        f"{stage}/{name}" for stage, files in sums.items() for name, (_, digest) in files.items()
        if hashlib.sha256((folder / stage / name).read_bytes()).hexdigest() != digest
    )  # fmt: skip


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git here")


@needs_git
def test_a_checkout_with_crlf_keeps_every_checksum_and_the_script(tmp_path):
    """A carriage return behind #!/usr/bin/env bash names a program that does not exist."""
    clone = checked_out_with_crlf(tmp_path, attributes=True)
    assert changed_files(clone) == []
    assert b"\r" not in (clone / ".ci" / "run").read_bytes()
    assert git(clone, "status", "--porcelain") == ""


@needs_git
def test_without_the_attributes_such_a_checkout_changes_both(tmp_path):
    """The control: texts of several lines get CRLF, so the test above can fail."""
    clone = checked_out_with_crlf(tmp_path, attributes=False)
    assert {"base/config.json", "base/README.md", "instruct/tokenizer.json"} <= {
        *changed_files(clone)
    }
    assert b"\r\n" in (clone / ".ci" / "run").read_bytes()


@needs_git
def test_the_attributes_of_every_kind_of_file(tmp_path):
    """Read by git itself: -text and binary are never converted, the others have LF always."""
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    git(tmp_path, "init", "-q")
    want = {
        ".ci/run": ("set", "lf"),
        "Makefile": ("auto", "lf"),
        "book/01_pretraining.ipynb": ("auto", "lf"),
        "book/_static/book.png": ("unset", "lf"),
        "course_lib/ops.py": ("auto", "lf"),
        "course_lib/shipped/base/model.safetensors": ("unset", "lf"),
        "course_lib/shipped/base/tokenizer.json": ("unset", "lf"),
        "course_lib/shipped/instruct/README.md": ("unset", "lf"),
        "course_lib/shipped/instruct/chat_template.jinja": ("unset", "lf"),
    }
    out = git(tmp_path, "check-attr", "text", "eol", "--", *want)
    found = dict.fromkeys(want, ())
    for line in out.splitlines():
        name, _, value = line.rsplit(": ", 2)
        found[name] += (value,)
    assert found == want


def test_every_shipped_stage_is_exempt_from_conversion():
    """A later stage needs its own line beside these."""
    rules = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    for stage in json.loads(shipped.CHECKSUMS.read_text(encoding="utf-8")):
        assert f"course_lib/shipped/{stage}/** -text" in rules
