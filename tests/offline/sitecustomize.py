"""Forbids connections off this machine in every Python that the tests start, kernels included."""

import socket

_connect = socket.socket.connect


def _connect_to_this_machine_only(self, address):
    host = address[0] if isinstance(address, tuple) else None
    if host is not None and host not in ("127.0.0.1", "::1", "localhost"):
        raise RuntimeError(f"Connection to {host} forbidden: tests and notebooks run offline.")
    return _connect(self, address)


socket.socket.connect = _connect_to_this_machine_only
