"""Where tensors live, and the mode in which a model computes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
