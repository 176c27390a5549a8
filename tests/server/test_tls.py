"""TLS: certificates that may be replaced, certificates of clients, and what is refused before a model is loaded."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from quire.errors import ConfigError
from quire.server import tls
from quire.server.args import ServerArgs
from quire.server.tls import ServerTls, check_tls
from tests.server.certificates import Identity, handshake, make_identity


@pytest.fixture(scope="module")
def identities() -> list[Identity]:
    return [make_identity(), make_identity()]


@pytest.fixture
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.0)


@pytest.mark.usefixtures("look_at_once")
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_new_certificate_is_used(
    identities: list[Identity], tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By connections that begin after the change, with a server name in their handshake or without."""
    old, new = identities
    context = ServerTls(ServerArgs(**old.write(tmp_path))).context
    before = handshake(context, old.client_context(), name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, new.client_context(), name)
    options = new.write(tmp_path)
    after = handshake(context, new.client_context(), name)
    assert before.getpeercert(True) != after.getpeercert(True)
    Path(options["ssl_keyfile"]).write_bytes(
        old.certificate.private_key_pem.bytes()
    )  # not this certificate's
    handshake(context, new.client_context(), name)
    Path(options["ssl_certfile"]).unlink()
    handshake(context, new.client_context(), name)
    assert caplog.text.count("the TLS certificate stays as it is") == 2
    old.write(tmp_path)
    handshake(context, old.client_context(), name)


@pytest.mark.usefixtures("look_at_once")
def test_certificates_of_clients(identities: list[Identity], tmp_path: Path) -> None:
    server, stranger = identities
    roots = tmp_path / "clients.pem"
    server.authority.cert_pem.write_to_path(roots)
    known, unknown = server.client_context(), server.client_context()
    server.authority.issue_cert("client@example.org").configure_cert(known)
    stranger.authority.issue_cert("client@example.org").configure_cert(unknown)
    for required, accepts in ((0, (True, True, True)), (1, (True, False, True)), (2, (True, False, False))):
        args = ServerArgs(**server.write(tmp_path), ssl_ca_certs=str(roots), ssl_cert_reqs=required)
        context = ServerTls(args).context
        for client, is_accepted in zip((known, unknown, server.client_context()), accepts):
            try:
                handshake(context, client)
            except ssl.SSLError:
                assert not is_accepted
            else:
                assert is_accepted
    stranger.authority.cert_pem.write_to_path(roots)  # now the other one's clients are known
    handshake(context, unknown)
    with pytest.raises(ssl.SSLError):
        handshake(context, known)


def test_old_versions_are_refused(identities: list[Identity], tmp_path: Path) -> None:
    context = ServerTls(ServerArgs(**identities[0].write(tmp_path))).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = identities[0].client_context()
        client.minimum_version = client.maximum_version = version
        assert handshake(context, client).version() == version.name.replace("_", ".")
    old = identities[0].client_context()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")  # else the client refuses by itself
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        handshake(context, old)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"ssl_certfile": "absent.pem"}, "ssl_certfile must be a file"),
        ({"ssl_ca_certs": "absent.pem"}, "ssl_ca_certs must be a file"),
        ({"ssl_certfile": None}, "ssl_keyfile needs ssl_certfile"),
        ({"ssl_certfile": None, "ssl_keyfile": None, "ssl_cert_reqs": 2}, "ssl_cert_reqs needs ssl_certfile"),
        ({"ssl_cert_reqs": 2}, "ssl_cert_reqs=2 needs ssl_ca_certs"),
        ({"ssl_keyfile": None}, "PEM certificate and its key"),
        ({"ssl_ca_certs": __file__}, "ssl_ca_certs must hold PEM certificates"),
        ({"ssl_certfile": __file__}, "PEM certificate and its key"),
    ],
)
def test_files_that_cannot_be_used(
    identities: list[Identity], tmp_path: Path, changes: dict[str, Any], names: str
) -> None:
    with pytest.raises(ConfigError, match=names):
        check_tls(ServerArgs(**identities[0].write(tmp_path) | changes))


def test_an_encrypted_key_asks_nobody(identities: list[Identity], tmp_path: Path) -> None:
    options = identities[0].write(tmp_path)
    key = serialization.load_pem_private_key(Path(options["ssl_keyfile"]).read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )
    Path(options["ssl_keyfile"]).write_bytes(encrypted)
    with pytest.raises(ConfigError, match="without a password"):
        check_tls(ServerArgs(**options))
