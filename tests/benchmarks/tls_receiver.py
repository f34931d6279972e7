"""A receiver that speaks TLS, for `--outbound`: answers every request with 200.

usage: python -m tests.benchmarks.tls_receiver CERTIFICATE-FILE     prints its port

One thread, one epoll set, requests with a Content-Length. The file is PEM: key and certificates.
Only who sends is measured, so what this takes does not matter.
"""

import re
import select
import socket
import ssl
import sys

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n"
    + b'{"ok":true}'
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Peer:
    """One connection."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self._data = b""

    def serve(self) -> None:
        """Answer what has come. ConnectionError: it has ended."""
        try:
            while True:
                received = self.sock.recv(65_536)
                if not received:
                    raise ConnectionResetError
                self._data += received
                while self._take_request():
                    self.sock.sendall(ANSWER)
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise ConnectionResetError from error

    def _take_request(self) -> bool:
        head, end, rest = self._data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or len(rest) < int(length[1]):
            return False
        self._data = rest[int(length[1]) :]
        return True


def main(certificate: str) -> None:
    """Serve until the input ends."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("0.0.0.0", 0), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    events = select.epoll()
    for file in (listener, sys.stdin):
        events.register(file, select.EPOLLIN)
    peers: dict[int, Peer] = {}
    while True:
        for descriptor, _ in events.poll():
            if descriptor == sys.stdin.fileno():
                return
            if descriptor == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setblocking(False)
                peer = Peer(context.wrap_socket(sock, True, do_handshake_on_connect=False))
                peers[peer.sock.fileno()] = peer
                events.register(peer.sock, select.EPOLLIN)
                continue
            try:
                # Shakes hands first, where that is not done.
                peers[descriptor].serve()
            except ConnectionError:
                events.unregister(descriptor)
                peers.pop(descriptor).sock.close()


if __name__ == "__main__":
    main(sys.argv[1])
