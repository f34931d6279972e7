"""What waits in storage, due and unclaimed, as far as this node knows, and when to claim again.

Owns that knowledge: whether more is likely to be there, for which destinations, and until when
storage is left alone after a failure. Guarantees that what waits is not overtaken for ever by what
is new: where some waits for a destination, what is new for it waits in storage, too. Claims follow
quickly while there is both more and room for it, and keep to their regular times otherwise.

Nothing here blocks. All times are on Trio's clock, which cannot be set.
"""

import math

import trio

from primeflowd.alarm import Alarm
from primeflowd.room import Room

# Seconds until storage is asked again: as a rule, when it is known to have more, after a failure.
_EVERY = 5.0
_HUNGRY = 0.1
_AFTER_FAILURE = 1.0


class Unclaimed:
    """Told of what was left in storage and of what claims found there.

    Attributes:
        hungry: storage is known, or likely, to have due rows that nobody holds and that we have
            room for. Any thread may set it.
        everywhere: what is new for any destination waits in storage. Any thread may ask.
        destinations: what is new for these does. Or a steady stream of it would take every place
            that becomes free. Any thread may ask, and add one.
        ask_from: when storage may be asked again, after a failure.
    """

    def __init__(self, room: Room, alarm: Alarm) -> None:
        self._room = room
        self._alarm = alarm
        self.hungry = True
        self.everywhere = False
        self.destinations: set[str] = set()
        self.ask_from = -math.inf
        self._asked_at = -math.inf

    def next_claim(self) -> float:
        """When storage shall be asked next; hunger brings it forward while there is room."""
        hungry = self.hungry and self._room.left() > 0
        return max(self._asked_at + (_HUNGRY if hungry else _EVERY), self.ask_from)

    def want_more(self) -> None:
        """There may be something to claim: look soon."""
        self.hungry = True
        self._alarm.by(self.next_claim())

    def asking(self) -> None:
        """A claim begins. Not after its transaction: what is refused during that may be unseen
        by it."""
        self._asked_at = trio.current_time()
        if self._room.left() > 0:
            self.hungry = False

    def asked(self, more: bool, full: set[str]) -> None:
        """A claim is over. `more`: it took all that it might; `full`: the destinations of which
        it left none of their share."""
        self.everywhere = more
        if more:
            self.hungry = True
        self.destinations = full

    def out_of_reach(self) -> None:
        """Storage failed: ask again in a while."""
        self.ask_from = trio.current_time() + _AFTER_FAILURE
        self.hungry = True
