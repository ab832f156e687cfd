"""For all tests: no network, in kernels neither; one thread each; a ceiling for every notebook.

A kernel that dies, or a cell that runs over its time, is told once: the rest of that notebook is
skipped, and the next notebook gets a kernel of its own.
"""

import os
import sys
import time
from pathlib import Path
from queue import Empty

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
os.environ.setdefault("OMP_NUM_THREADS", "1")  # make test runs two processes on two cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads spend no processor time
os.environ.pop("COURSE_LEDGER", None)  # tests write into no tracked file
os.environ.pop("JUPYTER_PATH", None)  # another Jupyter's kernels

SLACK = 3.0
"""A notebook fails when it does this many times the work of its ceiling: processor seconds depend
on caches, neighbours and kernels as well, and a machine must not fail for being what it is."""
LOOK_EVERY = 5.0
"""Seconds between two looks at whether a silent kernel still lives."""
_spent: dict[str, tuple[float, float]] = {}  # notebook -> (processor seconds, peak MB) so far
_stopped: dict[str, str] = {}  # notebook -> the cell that ended its kernel


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


def _look_whether_it_lives() -> None:
    """nbval waits for the answer of a dead kernel until the cell's time is up: look in between."""
    from nbval.kernel import RunningKernel

    patient = RunningKernel.await_reply

    def await_reply(self, msg_id, timeout=None):
        ends = time.monotonic() + (timeout or float("inf"))
        while (left := ends - time.monotonic()) > 0:
            try:
                return patient(self, msg_id, timeout=min(left, LOOK_EVERY))
            except Empty:
                if not self.is_alive():
                    raise RuntimeError(
                        "The kernel died in this cell (killed, crashed, or out of memory); the "
                        "rest of this notebook is skipped."
                    ) from None
        raise Empty

    RunningKernel.await_reply = await_reply


def pytest_configure(config):
    if config.pluginmanager.hasplugin("nbval"):
        _look_whether_it_lives()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if _is_cell(item) and (cell := _stopped.get(str(item.path))):
        pytest.skip(f"{item.path.name}: its kernel ended in {cell}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    finally:
        if _is_cell(item) and str(item.path) not in _stopped:
            kernel = item.parent.kernel
            if item.parent.timed_out or kernel is None or not kernel.is_alive():
                _stopped[str(item.path)] = item.name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """After the last cell: compare the kernel's work and peak memory with the ceiling."""
    if not _is_cell(item):
        return (yield)
    from notebooks import CEILING_MB, ceiling_work
    from work import children_seconds, work

    name, (seconds, peak) = str(item.path), _spent.get(str(item.path), (0.0, 0.0))
    seconds, peak = max(seconds, children_seconds()), max(peak, _children_mb())
    _spent[name] = seconds, peak
    result = yield  # first everything is taken down, then somebody may complain
    if nextitem is not None and getattr(nextitem, "path", None) == item.path:
        return result
    done, ceiling = work(seconds), ceiling_work(item.path.stem)
    item.user_properties.append(("notebook", f"{item.path.name}: work {done:.0f}, {peak:.0f} MB"))
    if done > SLACK * ceiling or peak > CEILING_MB:
        pytest.fail(
            f"{item.path.name} did {done:.0f} seconds of work and took {peak:.0f} MB; its ceiling "
            f"is {ceiling:.0f} (here times {SLACK:g}) and {CEILING_MB} MB.", pytrace=False,
        )  # fmt: skip
    return result


def pytest_terminal_summary(terminalreporter):
    """What each notebook cost, also where two processes ran them."""
    lines = {value for reports in terminalreporter.stats.values() for report in reports
             for key, value in getattr(report, "user_properties", ()) if key == "notebook"}
    for line in sorted(lines):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def base():
    """The shipped base model and its tokenizer, on the CPU."""
    from course_lib import load_model

    return load_model("base", "cpu")
