"""A client that hangs up at any moment leaves either no batch, or one whose callback is sent."""

import json
import random
import socket
import struct
import time
from pathlib import Path

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess


def hang_up(daemon: DaemonProcess, request: bytes, cut: int, pause: float) -> None:
    """Send `cut` bytes of a request, wait, and reset the connection."""
    host, port = daemon.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request[:cut])
        time.sleep(pause)
        # Linger 0 makes close() a reset: the rudest way to leave.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_hanging_up_at_any_moment(tmp_path: Path) -> None:
    """4.6, 5.6: half-sent requests make nothing; whole ones are delivered, answered or not."""
    dice = random.Random(7)
    with ReceiverProcess(tmp_path / "arrivals.jsonl") as receiver:
        daemon = DaemonProcess(tmp_path / "state")
        key = daemon.create_key()
        body = json.dumps({"status": "succeeded", "callback_url": receiver.url})
        request = (
            f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        with daemon:
            for _ in range(60):
                hang_up(daemon, request, dice.randrange(len(request)), 0)
            for _ in range(150):
                hang_up(daemon, request, len(request), dice.uniform(0, 0.006))
            with daemon.client(key) as client:
                made = {
                    batch["id"] for batch in client.get("/v1/batches?limit=500").json()["items"]
                }
                eventually(lambda: receiver.succeeded() >= made)
                eventually(lambda: client.get("/v1/stats").json()["held"] == 0)
                made = {
                    batch["id"] for batch in client.get("/v1/batches?limit=500").json()["items"]
                }
            assert daemon.terminate() == 0
        assert receiver.succeeded() == made
        assert 0 < len(made) <= 150, "either all or none got through: the moments are not mixed"
        assert not daemon.events("text"), "a client that leaves is no reason to print"
