"""Reading the body of a request into memory, and no more of it than allowed (contract 2.10).

Under the application the framework collects what arrives in a buffer of its own, capped at the
largest body of any endpoint; the caps of single endpoints are kept here. Blocks on the client, for
at most `TIMEOUT` seconds in all.
"""

from typing import Final

import trio
from werkzeug.exceptions import RequestEntityTooLarge

from primeflowd.api.errors import Rejected
from primeflowd.api.incoming import Incoming

TIMEOUT: Final = 60.0
# A client in the middle of sending reads no answer: give one that is only a little over the limit
# a moment to finish, so that it learns of its 413 instead of a connection reset.
_PATIENCE: Final = 1.0


async def read(request: Incoming, limit: int) -> bytes:
    """The whole body.

    Raises:
        Rejected: 413, it is longer than `limit` bytes; 408, it did not arrive in time.
    """
    arrived = arrived_body(request, limit)
    if arrived is not None:
        # Most bodies come with their heads: there is no deadline to set up.
        return arrived
    declared = request.content_length
    parts: list[bytes] = []
    total = 0
    with trio.move_on_after(TIMEOUT):
        try:
            if declared is None or declared <= limit:
                async for part in request.body:
                    parts.append(part)
                    total += len(part)
                    if total > limit:
                        break
                else:
                    return b"".join(parts)
            parts.clear()
            await _discard(request)
        except RequestEntityTooLarge:
            pass  # It is over every limit; the framework has stopped collecting it.
        raise _too_large(limit)
    raise Rejected(408, "request_timeout", "the body of the request did not arrive in time")


def arrived_body(request: Incoming, limit: int) -> bytes | None:
    """The whole body if it is here already; None if it must be waited for.

    Raises:
        Rejected: 413, it is longer than `limit` bytes.
    """
    arrived = request.arrived
    if arrived is not None and len(arrived) > limit:
        raise _too_large(limit)
    return arrived


def _too_large(limit: int) -> Rejected:
    return Rejected(
        413, "body_too_large", f"the body may have {limit} bytes", {"limit": str(limit)}
    )


async def _discard(request: Incoming) -> None:
    with trio.move_on_after(_PATIENCE):
        async for _ in request.body:
            pass
