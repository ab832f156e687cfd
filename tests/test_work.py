"""Work is the same on a slow machine and on a fast one."""

import os
import subprocess
import sys
import time

import pytest
import work


def test_a_slow_machine_does_the_same_work(monkeypatch):
    """The loop takes 4 s here and 1 s on the reference: 40 processor seconds are 10 of work."""
    monkeypatch.setattr(work, "calibrate", lambda: 4 * work.REFERENCE_SECONDS)
    assert work.work(40.0) == pytest.approx(10.0)


def test_other_kernels_are_calibrated_by_themselves(monkeypatch):
    """Work is divided by the speed of the kernels that did it: 40 s at 8 s a loop are 5."""
    elsewhere = work.calibrate_in({**os.environ, "ATEN_CPU_CAPABILITY": "default"})
    assert elsewhere > 0
    monkeypatch.setattr(work, "calibrate", lambda: work.REFERENCE_SECONDS)
    assert work.work(40.0, 8 * work.REFERENCE_SECONDS) == pytest.approx(5.0)


def test_the_calibration_is_work_itself():
    """Measured beside itself it comes out as the reference, up to the noise of a busy machine."""
    calibrated = work.calibrate()
    assert 0 < calibrated < 600
    started = time.process_time()
    work._train_a_little()
    assert 0.2 < (time.process_time() - started) / calibrated < 5


def test_what_children_spend_is_counted_and_what_they_wait_is_not():
    code = "import time\nwhile time.process_time() < {}: pass\nprint(flush=True)\ntime.sleep(60)"
    before = work.children_seconds()
    children = [subprocess.Popen([sys.executable, "-c", code.format(s)], stdout=subprocess.PIPE)
                for s in (0.0, 1.2)]  # the clock has ticks of 10 ms  # fmt: skip
    try:
        for child in children:
            child.stdout.readline()
        assert 1.0 <= work.children_seconds() - before < 5.0
    finally:
        for child in children:
            child.kill()
            child.wait()
