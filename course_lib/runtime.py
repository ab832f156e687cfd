"""Where tensors live, and in which precision and mode models compute."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


def device(name: str | None = None) -> torch.device:
    """The device to compute on: CUDA when there is a GPU, else the CPU.

    Args:
        name: e.g. ``"cpu"`` or ``"cuda:1"``; the environment variable ``COURSE_DEVICE`` when None.

    Raises:
        ValueError: an unknown device, or one that this machine does not have.
    """
    name = name or os.environ.get("COURSE_DEVICE")
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(
            f"Unknown device {name!r}: use 'cpu', 'cuda' or 'cuda:N' (argument or COURSE_DEVICE)."
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"Device {name!r} is not on this machine, which has {torch.cuda.device_count()} GPUs. "
            "Use 'cpu', or unset COURSE_DEVICE."
        )
    return chosen


def precision_for(device: torch.device) -> str:
    """``"bf16"`` where the hardware computes it natively, else ``"no"``."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    native = any(
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bf16" if device.type == "cpu" and native else "no"


def precision(device: torch.device, mixed_precision: str) -> str:
    """``"no"`` or ``"bf16"``; ``"auto"`` is ``precision_for`` the device.

    Raises:
        ValueError: another word.
    """
    chosen = precision_for(device) if mixed_precision == "auto" else mixed_precision
    if chosen not in ("no", "bf16"):
        raise ValueError(f'mixed_precision must be "auto", "no" or "bf16", got {chosen!r}.')
    return chosen


@contextmanager
def autocast(device: torch.device, mixed_precision: str) -> Iterator[None]:
    """The precision in which ``training.train`` computes, for what is computed outside of it.

    The loop puts it around the loss and around each batch that it draws: there a reference model
    gives the numbers of a policy of the same weights without more ado. What is computed before
    (log-probabilities of a data set) or in ``evaluate`` needs it by name.

    Args:
        mixed_precision: see ``precision``.
    """
    bf16 = precision(device, mixed_precision) == "bf16"
    with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
        yield


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's weights."""
    return next(model.parameters()).device


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within it the model is in evaluation mode, so without dropout; then each part as before.

    Parts that were in evaluation mode, such as a frozen layer of a model in training, stay so.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # a module comes before its parts
            if module.training != mode:
                module.train(mode)
