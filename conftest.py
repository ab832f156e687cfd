"""For all tests: no network, in kernels neither; and a ceiling on every notebook's budget."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT / "tests" / "offline"), os.environ.get("PYTHONPATH", "")])
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # as tools/notebooks.py sets it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_watched: dict[str, tuple[float, float]] = {}  # notebook -> (started, peak MB so far)


def _is_cell(item) -> bool:
    return type(item).__name__ == "IPyNbCell"


def _children_mb() -> float:
    peak = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            status = Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8")
            peak += int(status.split("VmHWM:")[1].split()[0]) / 1000
        except (OSError, IndexError):
            try:
                peak += child.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
    return peak


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if _is_cell(item):
        _watched.setdefault(str(item.path), (time.perf_counter(), 0.0))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    """After the last cell: compare time and peak memory of the kernel with the ceiling."""
    if not _is_cell(item):
        return
    from notebooks import CEILING_MB, CEILING_SECONDS

    started, peak = _watched[str(item.path)]
    peak = max(peak, _children_mb())
    _watched[str(item.path)] = (started, peak)
    if nextitem is not None and getattr(nextitem, "path", None) == item.path:
        return
    seconds = time.perf_counter() - started
    print(f"\n{item.path.name}: {seconds:.0f} s, {peak:.0f} MB")
    if seconds > CEILING_SECONDS or peak > CEILING_MB:
        pytest.fail(
            f"{item.path.name} took {seconds:.0f} s and {peak:.0f} MB; the ceiling is "
            f"{CEILING_SECONDS} s and {CEILING_MB} MB on two cores."
        )


@pytest.fixture(scope="session")
def base():
    """The shipped base model and its tokenizer, on the CPU."""
    from course_lib import load_model

    return load_model("base", "cpu")
