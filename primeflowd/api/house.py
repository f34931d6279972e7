"""What is behind the front door, the same for all of its connections.

A value; the front door says how full it is and whether it closes, and connections go by that.
"""

from dataclasses import dataclass, field
from typing import Protocol

from primeflowd.api.asgi_bridge import Application
from primeflowd.api.gate import Gate
from primeflowd.api.known_heads import KnownHeads
from primeflowd.ready_set import Readiness, TrioReadiness


class Watched(Protocol):
    """A connection, to whoever looks at all of them."""

    def watch(self, now: float) -> None:
        """End it if it is overdue, or abandoned by its client. `now`: Trio's time."""
        ...


@dataclass(slots=True)
class House:
    """See the module.

    Attributes:
        idle_timeout: seconds from the end of a request to the end of the next one's head, counted
            from the front door's next look.
        draining: each answer is its connection's last.
        crowded: there are as many connections as there may be.
        readiness: by which connections wait.
        connections: those that are open.
        known: heads of requests that came lately, whichever connection they came by.
    """

    application: Application
    gate: Gate
    idle_timeout: float
    draining: bool = False
    crowded: bool = False
    readiness: Readiness = field(default_factory=TrioReadiness)
    connections: set[Watched] = field(default_factory=set)
    known: KnownHeads = field(default_factory=KnownHeads)
