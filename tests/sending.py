"""The sending half of a node over the memory storage: real parts, but for the network.

`Wire` stands in for the transport. `Line` wires it up and knows how to make deliveries and to
look at what became of them.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import msgspec
import trio

from primeflowd.builtin.classifier import classify_outcome
from primeflowd.builtin.memory import MemoryStorage, open_memory
from primeflowd.callback_request import TraceHeaders
from primeflowd.callback_url import parse
from primeflowd.clock import TrioClock
from primeflowd.config import Config, DeliverySettings
from primeflowd.destinations import Destinations
from primeflowd.durations import Duration
from primeflowd.events import Event
from primeflowd.exchange import CutShort, Unread
from primeflowd.holdings import Holdings
from primeflowd.hookspecs import (
    DeliveryFilter,
    Page,
    RecordedAttempt,
    Signer,
    SigningRequest,
    Tx,
)
from primeflowd.instants import SECOND, Micros
from primeflowd.intake import Intake
from primeflowd.keyring import Keyring
from primeflowd.model import Attempt, Delivery, FailureReason, Outcome, Verdict
from primeflowd.preparation import UnderWay
from primeflowd.request_head import Request
from primeflowd.rulebook import Rulebook
from primeflowd.scheduler import Scheduler
from primeflowd.sender import Senders
from primeflowd.signing import Signatures
from primeflowd.signing_secrets import create_secret
from primeflowd.testing.factories import ORG, make_batch, make_delivery
from primeflowd.unit import Unit

T = TypeVar("T")

KEEPS: ContextVar[bool] = ContextVar("KEEPS", default=False)
"""Whether the Wire of a test keeps connections; see the fixture `keeps`."""

NODE = "node-1"
BODY = b'{"event":"batch.succeeded"}'


def url(host: str) -> str:
    return f"https://{host}/hook"


def destination(host: str) -> str:
    return f"https://{host}:443"


class Answer(msgspec.Struct, frozen=True):
    """What a receiver does; `after` seconds, `failure` instead of an answer."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    failure: FailureReason | None = None
    after: float = 0.0


OK = Answer()
ILL = Answer(failure="connection_error")
HANGS = Answer(failure="timeout", after=30.0)


class Wire:
    """A transport to receivers that exist only in `answers`, by host; others say 200. With `keeps`
    it has a kept connection to each."""

    def __init__(self, clock: TrioClock, *, keeps: bool = False) -> None:
        self._clock = clock
        self.keeps = keeps
        self.answers: dict[str, Answer | Callable[[Request], Answer]] = {}
        self.sent: list[tuple[Micros, Request]] = []
        # How many of its kept connections turn out to be dead.
        self.dead = 0
        self.cut = trio.Event()
        self.under_way = 0
        self.most_under_way = 0

    def begin(
        self,
        exchange: UnderWay,
        ended: Callable[[UnderWay, Outcome | Unread | CutShort], None],
        now: float,
        started_at: Micros,
    ) -> bool:
        if not self.keeps:
            return False
        exchange.started_at = started_at
        exchange.finishing = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._exchange, exchange, ended)
        return True

    def abandon(self, exchange: UnderWay) -> None:
        assert exchange.finishing is not None
        exchange.finishing.cancel()

    async def _exchange(
        self,
        exchange: UnderWay,
        ended: Callable[[UnderWay, Outcome | Unread | CutShort], None],
    ) -> None:
        assert exchange.finishing is not None
        with exchange.finishing:
            if self.dead:
                self.dead -= 1
                ended(exchange, Unread(exchange.started_at, trio.current_time()))
                return
            try:
                outcome = await self.send(exchange.request)
            except CutShort as cut:
                ended(exchange, cut)
            else:
                ended(exchange, outcome)

    async def send(
        self,
        request: Request,
        may_send: Callable[[], bool] = lambda: True,
        unread: Unread | None = None,
    ) -> Outcome:
        started_at = self._clock.now()
        self.sent.append((started_at, request))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            answer = self.answers.get(request.target.host, OK)
            if not isinstance(answer, Answer):
                answer = answer(request)
            with trio.move_on_after(answer.after):
                await self.cut.wait()
                raise CutShort
        finally:
            self.under_way -= 1
        return Outcome(
            status_code=None if answer.failure else answer.status,
            headers=answer.headers,
            body=answer.body,
            failure=answer.failure,
            error_message=f"it was {answer.failure}" if answer.failure else None,
            started_at=started_at,
            ended_at=self._clock.now(),
        )

    def hosts(self) -> list[str]:
        return [request.target.host for _, request in self.sent]

    def times(self, host: str) -> list[Micros]:
        return [instant for instant, request in self.sent if request.target.host == host]


class Seal:
    """A signer that shows what it was given, or raises."""

    name = "seal"

    def __init__(self) -> None:
        self.fails = False
        self.asked = 0

    def sign(self, request: SigningRequest) -> Iterable[tuple[str, str]]:
        self.asked += 1
        if self.fails:
            raise RuntimeError(request.secrets[0])
        return [("X-Seal", f"{request.attempt_id} {len(request.body)} {len(request.secrets)}")]


class Tenure:
    """A lease that a test ends: it lapses, or is lost and goes on under another id."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.lapsed = False

    def holds(self) -> bool:
        return not self.lapsed

    def covers(self, claimed_by: str | None) -> bool:
        return claimed_by == self.node_id and self.holds()


class Line:
    """From storage to the wire, not running yet: see `start`."""

    def __init__(
        self, storage: MemoryStorage, settings: DeliverySettings, *, keeps: bool = False
    ) -> None:
        self.storage = storage
        self.settings = settings
        self.clock = TrioClock()
        self.begun = self.clock.now()
        self.wire = Wire(self.clock, keeps=keeps)
        self.seal = Seal()
        self.keyring = Keyring(bytes(32))
        self.announced: list[RecordedAttempt] = []
        self.events: list[Event] = []
        self.late: list[Micros] = []
        self.trace_headers: TraceHeaders | None = None
        self.classify: Callable[[Outcome, Delivery], Verdict] = classify_outcome
        self.another(NODE)

    def another(self, node_id: str, signers: Sequence[Signer] | None = None) -> None:
        """A node that has just been started: nothing in memory."""
        config = msgspec.structs.replace(Config(), delivery=self.settings)
        self.node_id = node_id
        self.destinations = Destinations(self.settings, self.clock)
        self.lease = Tenure(node_id)
        self.holdings = Holdings(self.destinations, self.clock, self.settings, self.lease)
        self.scheduler = Scheduler(
            self.storage, self.holdings, self.destinations, self.clock, self.lease
        )
        self.rulebook = Rulebook(
            self.storage, self.keyring, self.clock, config, self.holdings.govern
        )
        self.intake = Intake(self.storage, self.holdings, self.clock, config)
        self.signatures = Signatures(
            self.storage, self.keyring, [self.seal] if signers is None else signers, self.clock
        )
        self.senders = Senders(
            storage=self.storage,
            destinations=self.destinations,
            desk=self.holdings,
            signatures=self.signatures,
            transport=self.wire,
            classify=lambda outcome, delivery: self.classify(outcome, delivery),
            on_recorded=self.announced.extend,
            on_event=self.events.append,
            clock=self.clock,
            settings=self.settings,
            lease=self.lease,
            health=self.rulebook,
            trace_headers=self.trace_headers,
            on_late=self.late.append,
        )

    def now(self) -> Micros:
        return self.clock.now()

    def start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.scheduler.run)
        nursery.start_soon(self.senders.run)

    async def add(
        self, host: str = "a", count: int = 1, *, due_in: float = 0.0, **changes: Any
    ) -> list[str]:
        """Deliveries that wait in storage, one microsecond after the other; their ids."""
        due_at = self.now() + round(due_in * SECOND)
        return await self.storage.write(lambda tx: _insert(tx, host, count, due_at, changes))

    async def submit(self, host: str = "a", count: int = 1, body: bytes = BODY) -> list[str]:
        """Deliveries that come in by the intake, due now; their ids."""

        def operation(unit: Unit) -> list[str]:
            made = []
            for _ in range(count):
                node_id = unit.node_for(destination(host))
                (delivery_id,) = _insert(
                    unit.tx, host, 1, unit.now, {"claimed_by": node_id, "payload": body}
                )
                delivery = unit.tx.delivery(None, delivery_id)
                assert delivery is not None
                unit.made.append((delivery, body))
                made.append(delivery_id)
            return made

        return await self.intake.perform(operation)

    async def secret(self) -> str:
        """A signing secret for the org of all deliveries; its id."""
        secret, _ = await self.intake.perform(
            lambda unit: create_secret(unit, self.keyring, ORG, None)
        )
        self.signatures.forget(ORG)
        return secret.id

    async def delivery(self, delivery_id: str) -> Delivery:
        delivery = await self.storage.read(lambda tx: tx.delivery(None, delivery_id))
        assert delivery is not None
        return delivery

    async def deliveries(self) -> list[Delivery]:
        """All of them, in the order of their ids."""
        found = await self.storage.read(
            lambda tx: tx.deliveries(ORG, DeliveryFilter(), Page(1_000_000))
        )
        return sorted(found, key=lambda delivery: delivery.id)

    async def attempts(self, delivery_id: str) -> list[Attempt]:
        return (await self.storage.read(lambda tx: tx.attempts([delivery_id]))).get(delivery_id, [])

    async def claims(self) -> dict[str, set[str]]:
        """The ids of claimed deliveries by node."""
        claims: dict[str, set[str]] = {}
        for delivery in await self.deliveries():
            if delivery.claimed_by is not None:
                claims.setdefault(delivery.claimed_by, set()).add(delivery.id)
        return claims

    async def check_claims(self) -> None:
        """What storage says this node has claimed is what it holds, or is about to give back."""
        claimed = (await self.claims()).get(self.node_id, set())
        assert {one for one in claimed if not self.holdings.holds(one)} == set()
        assert len(self.holdings) == len(claimed)


def _insert(tx: Tx, host: str, count: int, due_at: Micros, changes: dict[str, Any]) -> list[str]:
    made = []
    changes = dict(changes)
    payload = changes.pop("payload", BODY)
    for number in range(count):
        batch = make_batch(callback_url=url(host), payload=payload)
        values = {
            "batch_id": batch.id,
            "callback_url": url(host),
            "destination": parse(url(host)).destination,
            "due_at": due_at + number,
        }
        delivery = make_delivery(**values | changes)
        tx.insert_batch(batch)
        tx.insert_delivery(delivery)
        made.append(delivery.id)
    return made


@asynccontextmanager
async def open_line(*, keeps: bool | None = None, **changes: Any) -> AsyncIterator[Line]:
    """`changes` are settings of `[delivery]`; `keeps` is the Wire's, None for as KEEPS says."""
    settings = DeliverySettings(**{"suspend_period": Duration("0s"), **changes})
    async with open_memory() as storage:
        yield Line(storage, settings, keeps=KEEPS.get() if keeps is None else keeps)
