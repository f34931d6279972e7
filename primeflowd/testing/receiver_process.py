"""The programmable receiver in a process of its own, and what arrived there."""

import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec


class Arrival(msgspec.Struct, frozen=True):
    """One request as it arrived.

    Attributes:
        number: counted from 1.
        headers: by name in lower case; of several with one name, the last.
        time: when its last byte was there, in seconds since the epoch.
    """

    number: int
    headers: dict[str, str]
    body: bytes
    time: float


class ReceiverProcess:
    """A receiver that logs to `log` and answers as `script` says, for ever as its last answer.

    An answer is a mapping with some of the fields of `primeflowd.testing.receiver.Answer`, with
    `body` and `raw` as text; `{}` is a 200. With `by_attempt` the first answer is for the first
    attempt of any delivery, and so on; without, for the first request.

    Attributes:
        url: where callbacks may be sent, once it runs.
    """

    def __init__(
        self,
        log: Path,
        script: Sequence[Mapping[str, Any]] | None = None,
        *,
        by_attempt: bool = False,
    ) -> None:
        self._log = log
        self.script = list(script or [{}])
        self._by_attempt = by_attempt
        self._arrivals: list[Arrival] = []
        self._read = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 - our own words
            [
                *(sys.executable, "-m", "primeflowd.testing.receiver", "--port", "0"),
                *("--script", json.dumps(self.script), "--log", str(self._log)),
                *(["--by-attempt"] if self._by_attempt else []),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/callback"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def arrivals(self) -> list[Arrival]:
        """All requests so far, in order."""
        if self._log.exists():
            with self._log.open("rb") as log:
                log.seek(self._read)
                for line in log:
                    if not line.endswith(b"\n"):
                        break  # read in the middle of its being written
                    self._read += len(line)
                    self._arrivals.append(_arrival(json.loads(line)))
        return self._arrivals

    def succeeded(self) -> set[str]:
        """The batches whose callback was answered well."""
        return {
            str(json.loads(arrival.body)["batch_id"])
            for arrival in self.arrivals()
            if self._answered_well(arrival)
        }

    def _answered_well(self, arrival: Arrival) -> bool:
        number = arrival.number
        if self._by_attempt:
            number = int(arrival.headers["primeflow-attempt"])
        answer = self.script[min(number, len(self.script)) - 1]
        return bool(answer.get("status", 200) == 200 and not answer.get("hang"))


def _arrival(logged: dict[str, Any]) -> Arrival:
    return Arrival(
        number=logged["number"],
        headers={name.lower(): value for name, value in logged["headers"]},
        body=(
            logged["body"].encode() if "body" in logged else base64.b64decode(logged["body_base64"])
        ),
        time=logged["arrived_at"] / 1e6,
    )
