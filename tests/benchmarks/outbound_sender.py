"""The process that `--outbound` measures: our transport, and just enough to keep it busy.

usage: python -m tests.benchmarks.outbound_sender URL PORT CONNECTIONS HOSTS CA-FILE

It opens its connections, and then answers each line `SECONDS` of its input with a line `POSTS
CPU-SECONDS`: how many requests were answered meanwhile, and what that cost this process. Always
as many are under way as there are connections; each is begun over a kept one without a task, as
the senders do it, with the deadline that the transport gives every attempt.
"""

import sys
import time
from collections import deque

import trio

from primeflowd.clock import SystemClock
from primeflowd.exchange import CutShort, Exchange, Unread
from primeflowd.model import Outcome
from primeflowd.request_head import Request
from primeflowd.transport import Transport
from tests.benchmarks.producer import Body
from tests.network import request, settings

_AT_ONCE = 32
"""Begun between two turns of other tasks, as by the senders."""

_HEADERS = (
    ("Content-Type", "application/json"),
    ("User-Agent", "primeflowd/0.1.0"),
    ("Primeflow-Delivery-Id", "01920000-0000-7000-8000-00000000abcd"),
    ("Primeflow-Attempt", "1"),
    ("Primeflow-Request-Id", "01920000-0000-7000-8000-00000000dcba"),
    ("Webhook-Id", "01920000-0000-7000-8000-00000000abcd"),
    ("Webhook-Timestamp", "1700000000"),
    ("Webhook-Signature", "v1," + "A" * 43 + "="),
    ("Primeflow-Signature", "t=1700000000,v1=" + "0" * 64),
)


class Load:
    """Keeps requests under way: what is here waits for its next turn, by destination."""

    def __init__(self, transport: Transport, requests: list[Request], connections: int) -> None:
        self._transport = transport
        self._clock = SystemClock()
        self._idle = deque(requests[k % len(requests)] for k in range(connections))
        self._connections = connections
        self._ended = trio.Event()
        self.answered = 0

    async def connect(self) -> None:
        """Open all connections: one attempt over each, at the same time."""

        async def one(sent: Request) -> None:
            _check(await self._transport.send(sent))

        async with trio.open_nursery() as nursery:
            for sent in self._idle:
                nursery.start_soon(one, sent)

    async def run(self, seconds: float) -> None:
        """Send for so long, and wait for the rest."""
        until = trio.current_time() + seconds
        begun = 0
        while (now := trio.current_time()) < until or len(self._idle) < self._connections:
            if not self._idle or now >= until:
                self._ended = trio.Event()
                await self._ended.wait()
                continue
            self._begin(self._idle.popleft(), now)
            begun += 1
            if begun % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    def _begin(self, sent: Request, now: float) -> None:
        attempt = Exchange(request=sent)
        if not self._transport.begin(attempt, self._told, now, self._clock.now()):
            raise SystemExit(f"no connection to {sent.target.destination} was kept")

    def _told(self, attempt: Exchange, result: Outcome | Unread | CutShort) -> None:
        _check(result)
        self.answered += 1
        self._idle.append(attempt.request)
        self._ended.set()


def _check(result: Outcome | Unread | CutShort) -> None:
    if not isinstance(result, Outcome) or result.status_code != 200:
        raise SystemExit(f"a request failed: {result}")


async def main(scheme: str, port: int, connections: int, hosts: int, ca_file: str) -> None:
    """Serve the input."""
    body = Body().text(0).encode()
    requests = [
        request(f"{scheme}://127.0.0.{host + 1}:{port}/outbound", body, _HEADERS)
        for host in range(hosts)
    ]
    transport = Transport(settings(ca_file=ca_file, timeout="30s"), SystemClock())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.run)
        load = Load(transport, requests, connections)
        await load.connect()
        print("ready", flush=True)
        # Blocks: nothing else is to be done meanwhile.
        for line in iter(sys.stdin.readline, ""):
            before, began = load.answered, time.process_time()
            await load.run(float(line))
            used = time.process_time() - began
            print(load.answered - before, used, flush=True)
        nursery.cancel_scope.cancel()
    await transport.aclose()


if __name__ == "__main__":
    given = sys.argv
    trio.run(main, given[1], int(given[2]), int(given[3]), int(given[4]), given[5])
