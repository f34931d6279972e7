"""Both receivers must count alike: the tests run against each."""

import http.client
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks import receiver
from tests.benchmarks.ledger import FAILING, HANGING, Counts
from tests.benchmarks.machine import Cores
from tests.benchmarks.receiver import Receiver

SIGNED = {"X-Signature": "00"}


@pytest.fixture(params=["c", "python"])
def running(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Receiver]:
    if request.param == "python":
        monkeypatch.setenv("CC", "no-such-compiler")
    elif receiver.compiled(tmp_path) is None:
        pytest.skip("no C compiler")
    everywhere = frozenset(os.sched_getaffinity(0))
    with receiver.running(tmp_path, tmp_path, Cores(everywhere, everywhere)) as running:
        yield running


def post(
    running: Receiver, path: str, headers: dict[str, str], host: str = "127.0.0.9"
) -> tuple[int, bytes]:
    client = http.client.HTTPConnection(host, running.port, timeout=10)
    client.request("POST", path, body=b"x" * 600, headers=headers)
    answer = client.getresponse()
    found = answer.status, answer.read()
    client.close()
    return found


def test_a_callback_counts_once_and_its_repetition_too(running: Receiver) -> None:
    before = running.arrivals.counts()
    assert before == (0,) * 8
    assert post(running, "/c/0000000007", SIGNED) == (200, b'{"ok":true}')
    (slot,) = running.arrivals.slots(7, 1)
    assert (slot.delivered, slot.refused, slot.hung) == (1, 0, 0)
    assert post(running, "/c/0000000007", SIGNED)[0] == 200
    (again,) = running.arrivals.slots(7, 1)
    assert (again.arrived_at, again.delivered) == (slot.arrived_at, 2)
    assert running.arrivals.counts() == Counts(1, 1, 2, 0, 0, 1200, 0, 0)


def test_instants_are_those_of_this_process(running: Receiver) -> None:
    before = time.monotonic_ns()
    post(running, "/c/3", SIGNED)
    assert before <= running.arrivals.slots(3, 1)[0].arrived_at <= time.monotonic_ns()


def test_what_is_no_signed_callback_shows(running: Receiver) -> None:
    post(running, "/other", SIGNED)
    post(running, f"/c/{running.arrivals.capacity}", SIGNED)
    post(running, "/c/1", {"X-Signatures": "plural"})
    counts = running.arrivals.counts()
    assert (counts.delivered, counts.unknown, counts.unsigned) == (1, 2, 1)


def test_a_failing_host_refuses_twice_and_a_hanging_one_for_ever(running: Receiver) -> None:
    running.arrivals.control(FAILING, 2)
    running.arrivals.control(HANGING, 1)
    seen = [post(running, "/c/4", SIGNED, "127.0.0.2")[0] for _ in range(3)]
    assert seen == [500, 500, 200]
    assert post(running, "/c/6", SIGNED, "127.0.0.4")[0] == 200
    client = http.client.HTTPConnection("127.0.0.3", running.port, timeout=0.2)
    client.request("POST", "/c/5", body=b"x", headers=SIGNED)
    with pytest.raises(TimeoutError):
        client.getresponse()
    client.close()
    slots = running.arrivals.slots(4, 3)
    assert [(s.delivered, s.refused, s.hung) for s in slots] == [(1, 2, 0), (0, 0, 1), (1, 0, 0)]
    assert running.arrivals.counts() == Counts(2, 0, 5, 0, 0, 2401, 2, 1)


def test_requests_may_come_in_pieces_and_several_at_once(running: Receiver) -> None:
    request = b"POST /c/%d HTTP/1.1\r\nContent-Length: 4\r\nA-SIGNATURE: x\r\n\r\nbody"
    data = b"".join(request % number for number in range(10, 13))
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        for at in range(0, len(data), 17):
            client.sendall(data[at : at + 17])
        answers = b""
        while answers.count(b"true") < 3:
            answers += client.recv(4096)
    assert [slot.delivered for slot in running.arrivals.slots(10, 4)] == [1, 1, 1, 0]
    assert running.arrivals.counts().unsigned == 0
