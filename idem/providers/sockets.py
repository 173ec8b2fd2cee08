"""Opening a connection within a time."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any


def open_socket(host: str, port: int, left: Callable[[], float]) -> socket.socket:
    """Try each address of the host in turn, each for its share of the seconds that `left` gives; raises `OSError`.

    `socket.create_connection` would give the whole of it to every one, several times the deadline in all.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure = OSError("the host has no address")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        share = left() / (len(addresses) - tried)
        try:
            return _open_one(socket.socket(family, kind, protocol), address, share)
        except OSError as error:
            failure = error
    raise failure


def _open_one(connection: socket.socket, address: Any, seconds: float) -> socket.socket:
    try:
        connection.settimeout(seconds)
        connection.connect(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        connection.close()
        raise
    return connection
