"""Addresses of images: which are read, and that none leads a server where it must not go (SSRF)."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
import trustme

from quire.errors import InvalidRequestError
from quire.images import addresses, fetch
from tests.images.web import Web, running

HOST = "images.example"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server that counts as public, under the name HOST."""
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(addresses, "resolve", lambda host, port: ["127.0.0.1"])
    with running() as server:
        yield server


def url_of(web: Web, path: str = "/a.png", scheme: str = "http") -> str:
    return f"{scheme}://{HOST}:{web.port}{path}"


def refusal(url: str, *domains: str) -> str:
    with pytest.raises(InvalidRequestError) as raised:
        fetch.fetch(url, domains or (HOST,), "image")
    assert raised.value.parameter == "image"
    return str(raised.value)


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.88.99.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "::127.0.0.1", "no address", "",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert addresses.is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "0"]
)
def test_this_machine_is_not_reached_however_it_is_written(host: str) -> None:
    with running() as web:
        web.serve("/", b"secret")
        message = refusal(f"http://{host}:{web.port}/", "*")
        assert "is not on the public internet" in message or "cannot be resolved" in message
        assert web.hosts == []


def test_one_private_address_among_public_ones_is_enough(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "resolve", lambda host, port: ["127.0.0.1", "10.0.0.1"])
    assert "is not on the public internet" in refusal(url_of(web))
    assert web.hosts == []


def test_a_name_is_resolved_once_and_the_checked_address_is_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that changes its mind between the check and the connection (DNS rebinding) changes nothing."""
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    monkeypatch.setattr(addresses, "resolve", lambda host, port: next(answers))
    web.serve("/a.png", b"picture")
    assert fetch.fetch(url_of(web), (HOST,), "image") == b"picture"
    assert web.hosts == [f"{HOST}:{web.port}"]
    assert next(answers) == ["10.0.0.1"]


# -- hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domains", [(HOST,), ("IMAGES.example",), ("*.example",), ("*",), ("other.org", HOST)])
def test_hosts_on_the_list(web: Web, domains: tuple[str, ...]) -> None:
    web.serve("/a.png?b=c", b"picture")
    url = url_of(web, "/a.png?b=c#d").replace(HOST, HOST.upper() + ".")
    assert fetch.fetch(url, domains, "image") == b"picture"


@pytest.mark.parametrize(
    "domains", [("example",), ("*.images.example",), ("ges.example",), ("images.example.org",), ("*.xample",)]
)
def test_hosts_that_are_not(web: Web, domains: tuple[str, ...]) -> None:
    assert f"names the host {HOST}, which is not allowed" in refusal(url_of(web), *domains)
    assert web.hosts == []


def test_without_a_list_no_host_is_read() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        fetch.fetch("https://example.org/a.png", (), "image")
    assert "this server reads no http(s) addresses (--allowed-media-domains)" in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:password@{HOST}/", f"http://{HOST}@10.0.0.1/", "http:///a.png", f"ftp://{HOST}/", f"http://{HOST}:x/",
        "http://[::1/", f"http://{HOST}:99999/", f"http://{HOST}%00.evil/", "http://" + "a" * 64 + ".example/",
    ],
)  # fmt: skip
def test_urls_that_are_refused(web: Web, url: str) -> None:
    assert refusal(url, HOST)
    assert web.hosts == []


# -- redirects -----------------------------------------------------------------------------------------------


def test_redirects_are_followed(web: Web) -> None:
    web.serve("/a.png", b"", 302, Location="/b.png")
    web.serve("/b.png", b"", 307, Location=url_of(web, "/c.png"))
    web.serve("/c.png", b"picture")
    assert fetch.fetch(url_of(web), (HOST,), "image") == b"picture"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://10.0.0.1/", "names the host 10.0.0.1, which is not allowed"),
        ("http://elsewhere.example/", "names the host elsewhere.example, which is not allowed"),
        ("file:///etc/passwd", "must be an http(s) URL"),
        ("http://[::1", "redirects to no valid URL"),
        ("/a.png", "redirects more than 3 times"),
    ],
)
def test_redirects_are_checked_like_the_first_address(web: Web, location: str, message: str) -> None:
    web.serve("/a.png", b"", 302, Location=location)
    assert message in refusal(url_of(web))


def test_a_redirect_to_a_name_with_a_private_address(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {HOST: ["127.0.0.1"], "inside.example": ["192.168.0.1"]}
    monkeypatch.setattr(addresses, "resolve", lambda host, port: found[host])
    web.serve("/a.png", b"", 301, Location=f"http://inside.example:{web.port}/a.png")
    assert "names the host inside.example, which is not on the public internet" in refusal(url_of(web), "*")


# -- answers -------------------------------------------------------------------------------------------------


def test_answers_that_are_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 1000)
    web.serve("/missing", b"", 404)
    web.serve("/large", b"x" * 1001)
    web.serve("/compressed", b"x", Content_Encoding="gzip")
    web.serve("/short", b"x" * 10, Content_Length="20")
    assert "was answered with HTTP status 404" in refusal(url_of(web, "/missing"))
    assert "holds more than 1000 bytes" in refusal(url_of(web, "/large"))
    assert "compressed" in refusal(url_of(web, "/compressed"))
    assert "cannot be read: IncompleteRead" in refusal(url_of(web, "/short"))
    web.server.shutdown()
    web.server.server_close()
    assert "cannot be read: ConnectionRefusedError" in refusal(url_of(web))


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_slow_answer_is_cut_off(web: Web, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Byte by byte, so that no single read takes long."""
    monkeypatch.setattr(fetch, "TIME_LIMIT_S", 0.4)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: " if part == "head" else b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(1000):
            handler.wfile.write(b"x")
            time.sleep(0.02)

    web.answers["/a.png"] = drip
    assert "was not read within 0.4 s" in refusal(url_of(web))


def test_https_needs_a_certificate_of_the_name(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    contexts = {}
    for name in (HOST, "other.example"):
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(contexts[name])
    make_context = ssl.create_default_context

    def trusting() -> ssl.SSLContext:
        context = make_context()
        authority.configure_trust(context)
        return context

    with running(contexts[HOST]) as right, running(contexts["other.example"]) as wrong:
        right.serve("/a.png", b"picture")
        right.serve("/down", b"", 302, Location=url_of(web))
        assert "cannot be read: SSLCertVerificationError" in refusal(url_of(right, scheme="https"))
        monkeypatch.setattr(ssl, "create_default_context", trusting)
        assert fetch.fetch(url_of(right, scheme="https"), (HOST,), "image") == b"picture"
        assert "cannot be read: SSLCertVerificationError" in refusal(url_of(wrong, scheme="https"))
        assert "redirects from https to another scheme" in refusal(url_of(right, "/down", "https"))
