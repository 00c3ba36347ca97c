"""REST over TLS and IPv6: trusted or refused, within one deadline."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
import time

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from medseq_tf.serving.client import ServingClient
from medseq_tf.serving.refusals import ServingError


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file of a key and its self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = tmp_path_factory.mktemp("tls") / "loopback.pem"
    path.write_bytes(key.private_bytes(pem, *plain) + signed.public_bytes(pem))
    return path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hosts.append(self.headers["Host"])
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for byte in b'{"outputs": [[0.5]]}':
                self.wfile.write(bytes([byte]))
                time.sleep(self.server.pause)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(family=socket.AF_INET, certificate=None, pause=0.0):
    class Server(http.server.ThreadingHTTPServer):
        address_family = family

    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with Server((host, 0), Handler) as server:
        server.hosts, server.pause = [], pause
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def client(server, scheme="https", host="127.0.0.1", seconds=20):
    address = f"{scheme}://{host}:{server.server_port}/v1/models/m"
    return ServingClient(address, seconds=seconds, attempts=1)


def test_a_server_of_a_stranger_s_certificate_is_not_asked(certificate):
    with serving(certificate=certificate) as server:
        with pytest.raises(ServingError, match=r"no secure connection \(CERTIFICATE_VERIFY_FAILED"):
            client(server).predict([b"x"])
        assert not server.hosts


def test_a_server_of_a_trusted_certificate_is(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(certificate=certificate) as server:
        asked = client(server)
        for size in (1, 3_000_000):
            assert asked.predict([b"x" * size]).probability == np.float32([0.5])
        assert server.hosts == [f"127.0.0.1:{server.server_port}"] * 2


def test_one_that_drips_is_left_at_the_deadline(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with (
        serving(certificate=certificate, pause=0.1) as server,
        pytest.raises(ServingError, match=r"no answer within 0.7 s \(tried once\)"),
    ):
        client(server, seconds=0.7).predict([b"x"])


def test_one_that_shakes_no_hands_is_too():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}/v1/models/m"
        with pytest.raises(ServingError, match=r"no answer within 0.3 s \(tried once\)"):
            ServingClient(address, seconds=0.3, attempts=1).predict([b"x"])


def test_an_address_of_ipv6():
    try:
        with serving(socket.AF_INET6) as server:
            assert client(server, "http", "[::1]").predict([b"x"]).probability == [0.5]
            assert server.hosts == [f"[::1]:{server.server_port}"]
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
