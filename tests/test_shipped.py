"""Shipped models: every byte checked before it is loaded, and errors that say what to do."""

import json

import pytest
import torch

import course_lib
from course_lib import shipped
from course_lib.files import read_text, write_text
from course_lib.models import Llama, LlamaConfig, save_pretrained
from course_lib.world.tokenizer import save_tokenizer, train_tokenizer

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
