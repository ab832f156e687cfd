"""Where tensors live."""

import os

import torch


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
