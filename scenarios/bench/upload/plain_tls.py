"""The least that a transfer under TLS costs: one thread writes, another reads and throws away."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time

from coordinator.pki import Certificates

_PIECE_BYTES = 1 << 20
_DONE = b"1"


def plain_tls_s(size_bytes: int, certificates: Certificates) -> float:
    """Seconds that so many bytes take through a TLS socket on the loopback interface, handshake included."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificates.server, certificates.server_key)
    client_side = ssl.create_default_context(cafile=str(certificates.ca))
    piece = os.urandom(_PIECE_BYTES)
    started = time.perf_counter()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=_send, args=(listener.getsockname()[1], client_side, piece, size_bytes))
        sender.start()
        accepted, _ = listener.accept()
        with server_side.wrap_socket(accepted, server_side=True) as connection:
            received, buffer = 0, bytearray(_PIECE_BYTES)
            while received < size_bytes:
                count = connection.recv_into(buffer)
                if not count:
                    raise ConnectionError("the plain TLS transfer broke off")
                received += count
            connection.sendall(_DONE)
        sender.join()
    return time.perf_counter() - started


def _send(port: int, context: ssl.SSLContext, piece: bytes, size_bytes: int) -> None:
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        view = memoryview(piece)
        for start in range(0, size_bytes, len(piece)):
            connection.sendall(view[: min(len(piece), size_bytes - start)])
        # Whoever closes before the other has read everything may take the rest back.
        connection.recv(len(_DONE))
