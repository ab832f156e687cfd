"""Work: seconds of processor time, divided by the speed of the machine that spends them.

What a notebook costs is compared with its budget in this unit. A machine that is slow, or busy
with something else, takes longer and does the same work, so it cannot fail for being slow.
"""

import subprocess
import sys
import time
from functools import cache

import psutil
import torch
import torch.nn.functional as F

REFERENCE_SECONDS = 1.0
"""Processor seconds of the ``calibrate`` loop on the processor that the budgets are counted on."""


def _train_a_little(steps: int = 12) -> None:
    """What the course's notebooks do: small transformer steps, and many small tensors."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2048, 128), (128, 384), (128, 128), (128, 384), (384, 128)
    weights = [(torch.randn(s, generator=generator) / 16).requires_grad_() for s in shapes]
    embed, qkv, out, up, down = weights
    ids = torch.randint(2048, (8, 129), generator=generator)
    for _ in range(steps):
        x = embed[ids[:, :-1]]
        for _ in range(4):
            q, k, v = ((x @ qkv).view(8, 128, 3, 4, 32).permute(2, 0, 3, 1, 4)).unbind(0)
            x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(
                1, 2).reshape(8, 128, 128) @ out  # fmt: skip
            x = x + F.silu(x @ up) @ down
        F.cross_entropy((x @ embed.T).flatten(0, 1), ids[:, 1:].flatten()).backward()
        for weight in weights:
            weight.grad = None
    small = torch.zeros(1, 128)
    with torch.no_grad():
        for _ in range(4000):
            small = F.rms_norm(small + 1, (128,))


@cache
def calibrate() -> float:
    """Processor seconds that this machine takes for the loop on one thread; the least of three."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _train_a_little(1)
    tries = []
    for _ in range(3):
        started = time.process_time()
        _train_a_little()
        tries.append(time.process_time() - started)
    torch.set_num_threads(threads)
    return min(tries)


def calibrate_in(environment: dict[str, str]) -> float:
    """The same in a process of its own, e.g. with other kernels than this one's."""
    printed = subprocess.check_output([sys.executable, __file__], env=environment, text=True)
    return float(printed)


def work(processor_seconds: float, calibrated: float | None = None) -> float:
    """Seconds on the reference processor.

    Args:
        calibrated: of ``calibrate_in``, where they were spent elsewhere; ``calibrate()`` when None.
    """
    return processor_seconds * REFERENCE_SECONDS / (calibrated or calibrate())


def children_seconds() -> float:
    """Processor seconds that this process's living children, and theirs, have spent so far."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


if __name__ == "__main__":
    print(calibrate())
