"""The network is blocked in the tests and in the notebooks' kernels, and the block bites."""

import os
import socket
import subprocess
import sys

import pytest
from jupyter_client.manager import start_new_kernel

UNREACHABLE = ("192.0.2.1", 80)  # TEST-NET-1 of RFC 5737: belongs to nobody


def test_the_test_process_cannot_connect():
    with pytest.raises((RuntimeError, Exception), match="(?i)192.0.2.1|forbidden|blocked"):
        socket.create_connection(UNREACHABLE, timeout=1)


def test_a_started_python_cannot_connect():
    code = f"import socket; socket.create_connection({UNREACHABLE}, timeout=1)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode and "tests and notebooks run offline" in run.stderr


def test_a_notebook_kernel_cannot_connect_but_computes():
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        reply = client.execute_interactive(
            f"import socket; socket.create_connection({UNREACHABLE}, timeout=1)",
            timeout=600, output_hook=lambda message: None,
        )  # fmt: skip
        assert reply["content"]["status"] == "error"
        assert "run offline" in reply["content"]["evalue"]
        reply = client.execute_interactive("1 + 1", timeout=600, output_hook=lambda m: None)
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_the_hub_is_offline():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
