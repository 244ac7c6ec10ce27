"""Asking web servers that keep no promise: bounded in time and memory, whatever they send."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from artel.protocol.errors import Unreachable
from artel.protocol.net import opener
from artel.protocol.net.http import BadStatus, fetch

TIMEOUT_S = 0.4
GIVES_UP_S = 5.0
"""Then a server ends by itself, so that a client without a deadline fails instead of hanging."""
FLOOD_BYTES = 256 << 20
PIECE = bytes(1 << 16)

Script = Callable[[socket.socket, bytes], None]
"""``script(connection, head of the request)``"""


def request_head(connection: socket.socket) -> bytes:
    """The head of a request whose body has come too: closing a socket with bytes unread in it
    resets the connection (RFC 2525, 2.17), and the client may lose the answer."""
    head, _, body = connection.recv(1 << 16).partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\ncontent-length: (\d+)", head)
    left = int(length[1]) - len(body) if length else 0
    while left > 0 and (piece := connection.recv(left)):
        left -= len(piece)
    return head


@contextmanager
def lying(script: Script) -> Iterator[str]:
    """A server that does the same on each connection; HOST:PORT."""
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(GIVES_UP_S)
            with suppress(OSError):  # the client goes away
                script(connection, request_head(connection))

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    server = socket.create_server(("127.0.0.1", 0))
    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        accepting.join()
        for thread in threads:
            thread.join()


def dripping(head: bytes, drop: bytes) -> Script:
    """A beginning, and then the same again and again until the client goes away."""

    def script(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head)
        connection.settimeout(TIMEOUT_S / 20)
        end = time.monotonic() + GIVES_UP_S
        while time.monotonic() < end:
            connection.sendall(drop)
            with suppress(TimeoutError):
                if not connection.recv(1):
                    return

    return script


def in_circles(connection: socket.socket, head: bytes) -> None:
    time.sleep(0.7 * TIMEOUT_S)
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /%d\r\n\r\n" % time.monotonic_ns())


def late(fetching: Callable[[], object]) -> None:
    """The request fails in time."""
    began = time.monotonic()
    with pytest.raises(Unreachable, match="timed out"):
        fetching()
    assert TIMEOUT_S <= time.monotonic() - began < GIVES_UP_S


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SLOW = {
    "silence": (b"", b""),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "status": (b"HTTP/1.1 200 ", b"a"),
    "header": (b"HTTP/1.1 200 OK\r\n", b"a"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n", b"a"),
    "error": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4000\r\n\r\n", b"a"),
    "redirect elsewhere": (b"HTTP/1.1 302 Found\r\nLocation: ftp://a/\r\n\r\n", b"a"),
    "chunk": (CHUNKED + b"fff\r\n", b"a"),
    "chunk size": (CHUNKED, b"0"),
    "trailers": (CHUNKED + b"1\r\nx\r\n0\r\n", b"a: b\r\n"),
}


@pytest.mark.parametrize("what", SLOW)
def test_a_server_that_drips_is_left_at_the_deadline(what: str) -> None:
    with lying(dripping(*SLOW[what])) as server:
        late(lambda: fetch(f"http://{server}/", 1 << 16, TIMEOUT_S))


def test_redirects_have_one_deadline_together() -> None:
    with lying(in_circles) as server:
        late(lambda: fetch(f"http://{server}/", 1 << 16, TIMEOUT_S))


def test_the_addresses_of_a_name_have_one_deadline_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as full:  # whose queue is full: what connects to it waits
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            found = socket.getaddrinfo(*full.getsockname(), type=socket.SOCK_STREAM)
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found * 20)
            late(lambda: fetch("http://localhost/", 1 << 16, TIMEOUT_S))


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_without_its_body(code: int) -> None:
    sent = 0

    def script(connection: socket.socket, head: bytes) -> None:
        nonlocal sent
        if head.startswith(b"GET /there"):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nhere")
            return
        connection.sendall(b"HTTP/1.1 %d Found\r\nLocation: /there\r\n\r\n" % code)
        while sent < FLOOD_BYTES:
            connection.sendall(PIECE)
            sent += len(PIECE)

    with lying(script) as server:
        assert fetch(f"http://{server}/", 4, 10 * TIMEOUT_S) == b"here"
    assert sent < FLOOD_BYTES / 4, "what the sockets take by themselves"


@pytest.mark.parametrize("status", [b"404 Not Found", b"302 Found\r\nLocation: ftp://a/"])
def test_of_an_error_that_never_ends_a_little_is_read(status: bytes) -> None:
    def script(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 " + status + b"\r\n\r\n")
        for _ in range(FLOOD_BYTES // len(PIECE)):
            connection.sendall(PIECE)

    with lying(script) as server, pytest.raises(BadStatus) as failed:
        fetch(f"http://{server}/", 4, 10 * TIMEOUT_S)
    assert len(failed.value.body) <= len(PIECE)


@pytest.mark.parametrize(("body", "requests"), [(None, 1 + opener.MAX_REDIRECTS), (b"{}", 1)])
def test_only_a_few_redirects_are_followed_and_none_of_a_post(
    body: bytes | None, requests: int
) -> None:
    asked = itertools.count()

    def script(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /%d\r\n\r\n" % next(asked))

    with lying(script) as server, pytest.raises(BadStatus):
        fetch(f"http://{server}/", 4, 10 * TIMEOUT_S, body)
    assert next(asked) == requests


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    """A certificate that this process believes, of 127.0.0.1 and 192.0.2.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = [x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "192.0.2.1")]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .sign(key, SHA256())
    )
    file = tmp_path / "tls.pem"
    encoding = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.write_bytes(certificate.public_bytes(encoding) + key.private_bytes(encoding, *plain))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    opener._tls.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    yield context
    opener._tls.cache_clear()


@contextmanager
def secure(tls: ssl.SSLContext, script: Script) -> Iterator[str]:
    """A proxy that leads to a server behind TLS, wherever it is asked to lead."""

    def tunnel(connection: socket.socket, head: bytes) -> None:
        assert head.startswith(b"CONNECT 192.0.2.1:443 ")
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        with tls.wrap_socket(connection, server_side=True) as inner:
            script(inner, inner.recv(1 << 16))

    with lying(tunnel) as server:
        yield server


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def use(proxy: str) -> None:
        for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("https_proxy", f"http://{proxy}")

    return use


def test_https_through_a_proxy(tls: ssl.SSLContext, proxied: Callable[[str], None]) -> None:
    def script(connection: socket.socket, head: bytes) -> None:
        assert b"\r\nHost: 192.0.2.1\r\n" in head
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nsafe")

    with secure(tls, script) as proxy:
        proxied(proxy)
        assert fetch("https://192.0.2.1/", 4, 10 * TIMEOUT_S) == b"safe"


@pytest.mark.parametrize("what", ["interim answers", "body", "trailers"])
def test_tls_has_the_same_deadline(
    what: str, tls: ssl.SSLContext, proxied: Callable[[str], None]
) -> None:
    with secure(tls, dripping(*SLOW[what])) as proxy:
        proxied(proxy)
        late(lambda: fetch("https://192.0.2.1/", 1 << 16, TIMEOUT_S))


@pytest.mark.parametrize("what", ["silence", "status", "headers"])
def test_the_answer_of_a_proxy_has_the_same_deadline(
    what: str, proxied: Callable[[str], None]
) -> None:
    with lying(dripping(*SLOW[what])) as proxy:
        proxied(proxy)
        late(lambda: fetch("https://192.0.2.1/", 1 << 16, TIMEOUT_S))


def test_a_handshake_has_the_same_deadline() -> None:
    record = b"\x16\x03\x03\x40\x00"  # the head of one of 16 KiB
    with lying(dripping(record, b"\x00")) as server:
        late(lambda: fetch(f"https://{server}/", 1 << 16, TIMEOUT_S))


def test_no_redirect_leads_from_https_to_http(
    tls: ssl.SSLContext, proxied: Callable[[str], None]
) -> None:
    asked = []

    def plain(connection: socket.socket, head: bytes) -> None:
        asked.append(head)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nhere")

    with lying(plain) as server:
        answer = b"HTTP/1.1 302 Found\r\nLocation: http://%s/\r\n\r\n" % server.encode()
        with secure(tls, lambda connection, _: connection.sendall(answer)) as proxy:
            proxied(proxy)
            with pytest.raises(BadStatus):
                fetch("https://192.0.2.1/", 4, 10 * TIMEOUT_S)
        assert not asked
        with lying(lambda connection, _: connection.sendall(answer)) as other:
            assert fetch(f"http://{other}/", 4, 10 * TIMEOUT_S) == b"here"
