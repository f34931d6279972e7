"""An answer before it is HTTP: what handlers return and what idempotency stores."""

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """A status, the exact bytes of the body (JSON, or nothing), and headers beyond the usual."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
