"""The federation's certificates: owners that trust the authority reach the front door, and nothing else is trusted."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from coordinator.pki import Certificates, ensure_certificates

NOW = datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC)
HOST = "gpu.example.org"


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return ensure_certificates(tmp_path / "pki", HOST, NOW)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verify(files: Certificates, name: str, at: datetime.datetime = NOW) -> list[x509.Certificate]:
    try:
        subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    builder = PolicyBuilder().store(Store([certificate(files.ca)])).time(at)
    return builder.build_server_verifier(subject).verify(certificate(files.server), [])


@pytest.mark.parametrize("name", [HOST, "localhost", "127.0.0.1", "::1"])
def test_the_chain_verifies_for_every_name(files: Certificates, name: str) -> None:
    assert verify(files, name) == [certificate(files.server), certificate(files.ca)]


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "a" * 63 + ".example.org"])
def test_addresses_and_long_names_are_hosts_too(tmp_path: Path, host: str) -> None:
    assert verify(ensure_certificates(tmp_path, host, NOW), host)


@pytest.mark.parametrize("name", ["evil.example.org", "example.org", "192.0.2.1"])
def test_other_names_do_not_verify(files: Certificates, name: str) -> None:
    with pytest.raises(VerificationError):
        verify(files, name)


def test_it_is_valid_now_and_not_for_ever(files: Certificates) -> None:
    assert verify(files, HOST, NOW + datetime.timedelta(days=800))
    for days in (-1, 900):
        with pytest.raises(VerificationError):
            verify(files, HOST, NOW + datetime.timedelta(days=days))


def test_an_owner_whose_clock_is_slow_can_join_at_once(files: Certificates) -> None:
    assert verify(files, HOST, NOW - datetime.timedelta(minutes=50))


def test_another_federations_authority_does_not_verify(files: Certificates, tmp_path: Path) -> None:
    other = ensure_certificates(tmp_path / "other", HOST, NOW)
    with pytest.raises(VerificationError):
        verify(Certificates(other.ca, files.server, files.server_key), HOST)


def test_the_authority_signs_only_and_the_server_serves_only(files: Certificates) -> None:
    authority, server = certificate(files.ca), certificate(files.server)
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_only_this_user_may_read_the_servers_key(files: Certificates) -> None:
    assert stat.S_IMODE(files.server_key.stat().st_mode) == 0o600
    key = serialization.load_pem_private_key(files.server_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == certificate(files.server).public_key()


def test_the_authoritys_key_is_not_kept(files: Certificates) -> None:
    public = certificate(files.ca).public_key()
    assert sorted(path.name for path in files.ca.parent.iterdir()) == ["ca.pem", "server.key", "server.pem"]
    for path in files.ca.parent.iterdir():
        if b"PRIVATE KEY" in path.read_bytes():
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            assert key.public_key() != public


def test_a_second_call_keeps_the_files(files: Certificates) -> None:
    before = {path: path.read_bytes() for path in files.ca.parent.iterdir()}
    again = ensure_certificates(files.ca.parent, "another.example.org", NOW)
    assert again == files
    assert {path: path.read_bytes() for path in files.ca.parent.iterdir()} == before


def test_what_is_missing_is_made_anew(files: Certificates) -> None:
    files.server.unlink()
    ensure_certificates(files.ca.parent, HOST, NOW)
    assert verify(files, HOST)


def test_a_handshake_succeeds_with_the_authority_alone(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, HOST, datetime.datetime.now(datetime.UTC))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.server, files.server_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    try:
                        with server.wrap_socket(connection, server_side=True) as secure:
                            secure.sendall(b"hello")
                    except (ssl.SSLError, ConnectionError):
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        address = listener.getsockname()
        with socket.create_connection(address, timeout=20) as plain:
            trusting = ssl.create_default_context(cafile=str(files.ca))
            with trusting.wrap_socket(plain, server_hostname=HOST) as secure:
                assert secure.recv(5) == b"hello"
        with socket.create_connection(address, timeout=20) as plain, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(plain, server_hostname=HOST)
        thread.join(20)
        assert not thread.is_alive()
