"""For every test: no connection leaves this machine, and a busy machine is no failure."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("mmgen", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mmgen")

LOOPBACK = ("localhost", "127.0.0.1", "::1", "")


def _refuse_beyond_loopback(original: Any, host_of: Any) -> Any:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        host = host_of(*args)
        if host is not None and host not in LOOPBACK:
            # A BaseException: code that falls back when it is offline must not hide the attempt.
            pytest.fail(f"this test tried to reach {host!r}: tests make no connection beyond loopback")
        return original(*args, **kwargs)

    return guarded


def _peer(_socket: socket.socket, *args: Any) -> str | None:
    return args[-1][0] if isinstance(args[-1], tuple) else None


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            original = getattr(socket.socket, name)
            patch.setattr(socket.socket, name, _refuse_beyond_loopback(original, _peer))
        looked_up = _refuse_beyond_loopback(socket.getaddrinfo, lambda host, *_: host)
        patch.setattr(socket, "getaddrinfo", looked_up)
        yield
