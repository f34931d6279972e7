"""A steady load on one or several nodes, and the ledger of what they have answered for."""

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from primeflowd.testing.receiver_process import Arrival, ReceiverProcess

_REQUEST_TIMEOUT = 4.0
_ANSWERED_WITHIN = 60.0
_PAUSE = 0.03


class Load:
    """Threads that register ended batches, while the `with` block runs.

    Each request has an Idempotency-Key and is repeated, at any node, until it is answered with a
    2xx. So in the end the ledger is exact: every batch in storage is in it, and once.

    Args:
        urls: of the nodes that may be asked now; asked anew for each try.
        callbacks: callback URLs, taken in turn.
        per_second: batches registered, in all.

    Attributes:
        accepted: callback URL by batch id; what was answered with a 2xx.
        repeats: why tries failed, and how often: names of exceptions, and status codes.
        replayed: how many requests were carried out by a try that was not answered.
        slowest: seconds from the first try of a request to its answer, the most of all.
    """

    def __init__(
        self,
        urls: Callable[[], Sequence[str]],
        key: str,
        callbacks: Sequence[str],
        per_second: float,
        threads: int = 8,
    ) -> None:
        self.accepted: dict[str, str] = {}
        self.repeats: Counter[str] = Counter()
        self.replayed = 0
        self.slowest = 0.0
        self._urls, self._key, self._callbacks = urls, key, callbacks
        self._interval = threads / per_second
        self._stop = threading.Event()
        self._failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._work, args=(k,)) for k in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, once what is under way is answered.

        Raises:
            AssertionError: a request was refused, or not answered in time.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if error is None:
            assert not self._failures, self._failures

    def _work(self, number: int) -> None:
        dice = random.Random(number)  # noqa: S311 - no secret
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            with httpx.Client(headers=headers, timeout=_REQUEST_TIMEOUT) as client:
                turn, due = number, time.monotonic()
                while not self._stop.wait(due - time.monotonic()):
                    self._register(client, dice, self._callbacks[turn % len(self._callbacks)])
                    turn += len(self._threads) + 1  # so that each thread comes to each callback
                    # After a pause no burst: the load is steady, not owed.
                    due = max(due + self._interval, time.monotonic() - self._interval)
        except Exception as error:  # noqa: BLE001 - raised where the block is left
            self._failures.append(error)

    def _register(self, client: httpx.Client, dice: random.Random, callback: str) -> None:
        headers = {"Idempotency-Key": str(uuid.UUID(int=dice.getrandbits(128)))}
        batch = {"status": "succeeded", "callback_url": callback}
        began = time.monotonic()
        while (answer := self._try(client, dice, headers, batch)) is None:
            if time.monotonic() - began > _ANSWERED_WITHIN:
                raise AssertionError(f"no answer within {_ANSWERED_WITHIN:g} s: {self.repeats}")
            time.sleep(_PAUSE)
        self.slowest = max(self.slowest, time.monotonic() - began)
        assert answer.status_code == 201, answer.text
        self.accepted[answer.json()["id"]] = callback
        self.replayed += "idempotency-replayed" in answer.headers

    def _try(
        self,
        client: httpx.Client,
        dice: random.Random,
        headers: dict[str, str],
        batch: dict[str, str],
    ) -> httpx.Response | None:
        urls = self._urls()
        if not urls:
            self.repeats["no node"] += 1
            return None
        try:
            answer = client.post(f"{dice.choice(urls)}/v1/batches", json=batch, headers=headers)
        except httpx.HTTPError as error:
            # The node died, or hangs: whether it did what it was asked is for the next to say.
            self.repeats[type(error).__name__] += 1
            return None
        if answer.status_code == 503 or (
            answer.status_code == 409 and answer.json()["code"] == "idempotency_in_progress"
        ):
            self.repeats[str(answer.status_code)] += 1
            return None
        return answer


class Receivers:
    """Four receivers, each a destination of its own: one that is well, one that is slow, and two
    that answer with errors at first. They run while the `with` block does.

    Attributes:
        slow: how long the slow one takes, in seconds.
        urls: of all four.
    """

    def __init__(self, directory: Path, *, slow: float = 0.4) -> None:
        self.slow = slow
        self._receivers = [
            ReceiverProcess(directory / "well.jsonl"),
            ReceiverProcess(directory / "slow.jsonl", [{"delay": slow}]),
            ReceiverProcess(directory / "once.jsonl", [{"status": 503}, {}], by_attempt=True),
            ReceiverProcess(
                directory / "twice.jsonl", [{"status": 500}, {"status": 404}, {}], by_attempt=True
            ),
        ]
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for receiver in self._receivers:
                starting.enter_context(receiver)
            self._running = starting.pop_all()
        self.urls = [receiver.url for receiver in self._receivers]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._running.close()

    def arrivals(self) -> list[Arrival]:
        """What arrived so far, at one after the other."""
        return [arrival for receiver in self._receivers for arrival in receiver.arrivals()]
