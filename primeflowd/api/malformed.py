"""Envelopes for what the HTTP server answers by itself, before or behind the application.

Hypercorn answers malformed HTTP, a head that is too large and an application that gave no answer
with a bare status line. Contract 2.5 and 2.7 want the envelope and a request id there too. This is
the one seam: two subclasses that override the methods which make those answers, and `install`,
which puts the outer one in the place where Hypercorn's server looks for it. Nothing of this is
public interface there, so tests/api/test_malformed.py talks to a real socket: it fails if a newer
Hypercorn has moved any of it.

The same place keeps the surface small: no WebSocket, no upgrade to HTTP/2 (`Upgrade` is ignored,
as RFC 9110 allows), and of requests only those that request_rules.py lets through.
"""

from functools import cache
from typing import Final

import h11
import hypercorn.protocol
import structlog
import trio
from hypercorn.protocol.events import Body, EndBody, Request, Response
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream

from primeflowd.api import errors, request_id
from primeflowd.api.request_rules import (
    MAX_HEADERS,
    grouped,
    has_control_characters,
    origin_form,
    refusal,
)

log = structlog.get_logger()

# Ending a stream and a connection waits for nobody; this only keeps the shield from lasting.
_CLOSING: Final = 5.0


@cache
def install() -> None:
    """Make Hypercorn in this process use the classes below."""
    hypercorn.protocol.H11Protocol = Protocol  # type: ignore[attr-defined]  # no public name


class Stream(HTTPStream):
    """One request and its answer."""

    async def _send_error_response(self, status_code: int) -> None:
        # Reached when the application ends without an answer, as it does if it fails where
        # nothing could catch that.
        headers, body = _answer(status_code)
        await self.send(
            Response(stream_id=self.stream_id, headers=headers, status_code=status_code)
        )
        if self.scope["method"] != "HEAD":
            await self.send(Body(stream_id=self.stream_id, data=body))
        await self.send(EndBody(stream_id=self.stream_id))
        self.state = ASGIHTTPState.CLOSED


class Protocol(H11Protocol):
    """One connection."""

    async def _send_error_response(self, status_code: int) -> None:
        await self._refuse(status_code, b"")

    async def _refuse(self, status_code: int, method: bytes) -> None:
        headers, body = _answer(status_code)
        log.debug("malformed_request", status=status_code)
        await self._send_h11_event(
            h11.Response(
                status_code=status_code,
                headers=[*headers, *self.config.response_headers("h11")],
            )
        )
        if method != b"HEAD":
            await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _maybe_recycle(self) -> None:
        # Ending a stream tells the application that its client has gone, upon which quart-trio
        # cancels the very task that we are in. Without the shield the rest would not happen: a
        # connection that was to be closed would stay open for good, and one that is kept would
        # have no idle timeout any more.
        with trio.move_on_after(_CLOSING, shield=True):
            await super()._maybe_recycle()

    async def _check_protocol(self, event: h11.Request) -> None:
        """No upgrades: the base class would turn to HTTP/2 here."""

    async def _create_stream(self, request: h11.Request) -> None:
        fields = grouped(request.headers)
        status = refusal(request.method, request.http_version.decode(), fields)
        if status is None and len(request.headers) > MAX_HEADERS:
            status = 431
        if status is None and has_control_characters(fields):
            status = 400
        target = origin_form(request.target)
        if status is not None or target is None:
            await self._refuse(status or 400, request.method)
            await self._maybe_recycle()
            return
        self.stream = Stream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1
        await self.context.mark_request()


def _answer(status_code: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
    body = errors.for_status(status_code).body
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (request_id.HEADER.lower().encode(), request_id.choose(None).encode()),
    ]
    return headers, body
