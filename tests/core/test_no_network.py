import socket

import pytest

Refused = pytest.fail.Exception


def test_a_connection_beyond_loopback_fails():
    with socket.socket() as s, pytest.raises(Refused, match=r"192\.0\.2\.1"):
        s.connect(("192.0.2.1", 80))
    with socket.socket() as s, pytest.raises(Refused):
        s.connect_ex(("192.0.2.1", 80))
    with socket.socket(type=socket.SOCK_DGRAM) as s, pytest.raises(Refused):
        s.sendto(b"", ("192.0.2.1", 53))


def test_a_name_is_not_looked_up():
    with pytest.raises(Refused, match=r"example\.invalid"):
        socket.create_connection(("example.invalid", 443))


def test_loopback_works():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert client.getpeername() == server.getsockname()
