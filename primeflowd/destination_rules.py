"""What holds for one destination, as the parts that send are given it. Values only."""

import msgspec

from primeflowd.config import DestinationSettings
from primeflowd.durations import Duration
from primeflowd.instants import Micros


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of one destination; the defaults are those of a destination that has none.

    Attributes:
        rate: attempts per second, 0 for any number; `burst` of them at once.
        concurrency: attempts at once, whatever the window allows; 0 for any number.
        timeout: most that an attempt may take; None is `delivery.timeout`.
        headers: to add to every attempt.
        disabled: why nothing is sent there; None where it is not disabled.
        shut: it is disabled, and its deliveries wait in storage; else they fail.
        disable_after: how long every attempt must have failed; 0 for never.
    """

    rate: float = 0.0
    burst: int = 1
    concurrency: int = 0
    timeout: Duration | None = None
    headers: tuple[tuple[str, str], ...] = ()
    disabled: str | None = None
    shut: bool = False
    disable_when_gone: bool = False
    disable_after: Micros = 0

    def __repr__(self) -> str:
        # The values of headers may be secrets.
        return f"Rules(disabled={self.disabled!r}, headers={[name for name, _ in self.headers]})"


def make(settings: DestinationSettings, headers: dict[str, str], disabled: str | None) -> Rules:
    """The rules that settings come to. `headers` and `disabled` stand for those of `settings`."""
    return Rules(
        rate=settings.rate,
        burst=settings.burst,
        concurrency=settings.concurrency,
        timeout=settings.timeout if settings.timeout.micros else None,
        headers=tuple(headers.items()),
        disabled=disabled,
        shut=disabled is not None and settings.while_disabled == "wait",
        disable_when_gone=settings.disable_when_gone,
        disable_after=settings.disable_after.micros,
    )
