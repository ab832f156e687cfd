"""The models that come with the package, one folder a stage, verified before they are loaded.

A folder holds config.json, model.safetensors, tokenizer.json, tokenizer_config.json, the model's
card (README.md) and its evaluation; ``checksums.json`` holds the SHA-256 of every file.
``python -m course_lib.shipped`` writes it anew after a model was made.
"""

import hashlib
import json
from pathlib import Path

import torch

from course_lib.files import read_text, write_json

HERE = Path(__file__).parent
STAGES = ("base", "instruct", "preference", "reasoning")
CHECKSUMS = HERE / "checksums.json"
REINSTALL = "Install it again (pip install --force-reinstall course_lib) or run make model."


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_checksums() -> dict[str, dict[str, list]]:
    """Stage -> file -> [bytes, SHA-256]; empty when nothing is shipped."""
    try:
        return json.loads(read_text(CHECKSUMS))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{CHECKSUMS} is damaged ({error}). {REINSTALL}") from None


def model_path(stage: str = "base") -> Path:
    """The folder of a shipped model, after its files were checked.

    Args:
        stage: ``"base"``, ``"instruct"``, ``"preference"`` or ``"reasoning"``.

    Raises:
        ValueError: an unknown stage, one that is not shipped yet, or a file (the list of checksums
            too) that is missing, truncated or changed.
    """
    if stage not in STAGES:
        raise ValueError(f"Unknown stage {stage!r}: the stages are {', '.join(STAGES)}.")
    sums = _read_checksums()
    if stage not in sums:
        raise ValueError(
            f"Stage {stage!r} is not shipped with this version (shipped: "
            f"{', '.join(sums) or 'none'}). Choose one that is, or make base with make model."
        )
    folder = HERE / stage
    for name, (size, digest) in sums[stage].items():
        path = folder / name
        if not path.exists():
            raise ValueError(f"{path} is missing. {REINSTALL}")
        if path.stat().st_size != size:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes instead of {size}: it is truncated or "
                f"was changed. {REINSTALL}"
            )
        if _sha256(path) != digest:
            raise ValueError(f"{path} has a wrong checksum: it was changed. {REINSTALL}")
    return folder


def load_model(stage: str = "base", device: str | torch.device | None = None):
    """A shipped model and its tokenizer, ready to use.

    Args:
        stage: see ``model_path``.
        device: see ``course_lib.device``.

    Returns:
        (model, tokenizer): a ``course_lib.models.Llama`` in evaluation mode and a
        ``transformers.PreTrainedTokenizerFast`` that pads on the left.
    """
    return load_model_from(model_path(stage), device)


def load_model_from(folder: str | Path, device: str | torch.device | None = None):
    """Like ``load_model``, for any folder with a model and its tokenizer, unchecked."""
    from transformers import PreTrainedTokenizerFast

    from course_lib.models import from_pretrained
    from course_lib.runtime import device as choose_device

    target = choose_device(str(device) if device is not None else None)
    model = from_pretrained(folder).to(target).eval()
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def write_checksums() -> None:
    """Record size and SHA-256 of every file of every stage that is there."""
    sums = {
        stage: {
            path.name: [path.stat().st_size, _sha256(path)]
            for path in sorted((HERE / stage).iterdir())
            if path.suffix not in (".part", ".pyc") and path.is_file()
        }
        for stage in STAGES
        if (HERE / stage / "model.safetensors").exists()
    }
    write_json(CHECKSUMS, sums)
