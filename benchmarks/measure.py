"""How two implementations are compared on a machine that is never quite quiet.

They take turns, and which one goes first alternates; the figure is the median of the ratios of
neighbouring times, so a slow spell hits both. Nothing here is a test: a time never fails a build.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Comparison:
    """Seconds of each round, ours and theirs, and the quartiles of theirs / ours."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """How many times as fast as theirs ours is: the median over the rounds."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.ratios, n=4)
        return low, high

    @property
    def seconds(self) -> float:
        return statistics.median(self.ours)


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, until an accelerator has finished too."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> Comparison:
    """Time both ``rounds`` times in turn, after one call of each to warm up."""
    seconds(ours), seconds(theirs)
    result = Comparison([], [])
    for i in range(rounds):
        turns = [(ours, result.ours), (theirs, result.theirs)]
        for call, times in turns if i % 2 == 0 else reversed(turns):
            times.append(seconds(call))
    return result


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors took during the call, on top of what was there before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def matmul_peak(device: torch.device, size: int = 1024, tries: int = 12) -> float:
    """Floating-point operations a second of the fastest of ``tries`` square fp32 products."""
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    best = min(seconds(lambda: a @ b) for _ in range(tries))
    return 2 * size**3 / best


def matmul_flops(
    model: torch.nn.Module, tokens: int, attended: int, scored: int | None = None
) -> float:
    """Operations of one forward pass: two a weight and token, and attention's two products.

    Looking an embedding up multiplies nothing; the output matrix counts for scored tokens only.

    Args:
        tokens: how many are read in all.
        attended: how many keys they see, summed over the tokens.
        scored: how many get logits; all of them when None.
    """
    config = model.config
    weights = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    output = config.vocab_size * config.n_embd
    scored = tokens if scored is None else scored
    attention = 4 * config.n_layer * config.n_embd * attended
    return 2 * weights * tokens + 2 * output * scored + attention


def table(title: str, head: list[str], rows: list[list[str]]) -> str:
    """A plain-text table."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths)) for row in [head, *rows]]
    return "\n".join([title, *lines, ""])
