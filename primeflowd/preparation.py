"""What an attempt needs before it can be sent: the payload, its signatures, a request.

Owns how these are put together, in one step for an attempt that has all at hand, or waiting for
what is missing. The request of an attempt is made, and signed, once.

`prepare_now` never blocks, and leaves whatever is odd to `prepare`; that blocks on storage, for the
payload and the org's secrets. What keeps an attempt from being sent is raised as Unsendable,
whoever's fault it is.
"""

from typing import Final

import structlog

from primeflowd import callback_request
from primeflowd.callback_url import parse
from primeflowd.destination import Held
from primeflowd.exchange import Exchange
from primeflowd.hookspecs import Storage
from primeflowd.instants import Micros
from primeflowd.model import FailureReason
from primeflowd.signed_headers import SigningFailed
from primeflowd.signing import Signatures, Signed

log = structlog.get_logger()


class UnderWay(Exchange, eq=False):
    """An attempt that has all it needs; the transport's to fill in if it gets no task."""

    held: Held
    id: str
    signed: Signed


class Unsendable(Exception):
    """There is nothing that could be sent, and that counts as an attempt.

    Attributes:
        signed: None if it came not so far.
    """

    def __init__(self, reason: FailureReason, message: str, signed: Signed | None = None) -> None:
        super().__init__(message)
        self.reason: Final = reason
        self.message: Final = message
        self.signed: Final = signed


class Preparation:
    """For the senders of a node."""

    def __init__(
        self,
        storage: Storage,
        signatures: Signatures,
        trace_headers: callback_request.TraceHeaders | None,
    ) -> None:
        self._storage = storage
        self._signatures = signatures
        self._trace_headers = trace_headers

    def prepare_now(
        self, held: Held, attempt_id: str, now: float, instant: Micros
    ) -> UnderWay | None:
        """An attempt, ready to be sent; None if anything is missing, or odd: `prepare` finds
        out what it is. `now`: Trio's time; `instant`: the time of day."""
        delivery, body, rules = held.delivery, held.body, held.rules
        if body is None or (rules is not None and rules.disabled is not None):
            return None
        try:
            target = parse(delivery.callback_url)
            signed = self._signatures.sign_now(delivery, attempt_id, body, now, instant)
            if signed is None:
                return None
            request = callback_request.make(
                target, held, attempt_id, signed, body, self._trace_headers
            )
        except (ValueError, SigningFailed):
            return None
        return UnderWay(held, attempt_id, signed, request=request)

    async def prepare(self, held: Held, attempt_id: str) -> UnderWay:
        """An attempt, ready to be sent.

        Raises:
            StorageUnavailable: nothing is known.
            Unsendable: it cannot be made ready.
        """
        delivery, rules = held.delivery, held.rules
        if rules is not None and rules.disabled is not None:
            raise Unsendable("url_not_allowed", f"the destination is disabled: {rules.disabled}")
        try:
            target = parse(delivery.callback_url)
        except ValueError as error:
            # The rules have become stricter since it was accepted: one bad row must not keep the
            # daemon from running.
            raise Unsendable("url_not_allowed", str(error)) from error
        try:
            body = await self._body(held)
            signed = await self._signatures.sign(delivery, attempt_id, body)
        except SigningFailed as error:
            log.error("signer_failed", signer=error.name, delivery_id=delivery.id, error=str(error))
            raise Unsendable("internal_error", str(error)) from error
        try:
            request = callback_request.make(
                target, held, attempt_id, signed, body, self._trace_headers
            )
        except ValueError as error:
            raise Unsendable("internal_error", str(error), signed) from error
        return UnderWay(held, attempt_id, signed, request=request)

    async def _body(self, held: Held) -> bytes:
        if held.body is not None:
            return held.body
        delivery = held.delivery
        return (await self._storage.read(lambda tx: tx.payloads([delivery])))[delivery.id]
