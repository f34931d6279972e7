"""How many deliveries this node may hold: in all, for one destination, for one that is ill.

Pure counting, for holdings. Asking is allowed in any thread; changing is not.
"""

from collections.abc import Mapping

from primeflowd.config import DeliverySettings
from primeflowd.destinations import Destinations


class Room:
    """Counts of held deliveries against `active_limit` and `destination_share`.

    Of a destination that is suspended or being probed only a few are held: else a handful of
    dead ones, each with its share, would leave no room for those that work. Of one that is shut
    by its rules none is.
    """

    def __init__(self, settings: DeliverySettings, destinations: Destinations) -> None:
        self._destinations = destinations
        self._ill = destinations.ill()
        self._count: dict[str, int] = {}
        self._total = 0
        self.reconfigure(settings)

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Other limits; what is held beyond them stays until it goes by itself."""
        self.limit = settings.active_limit
        self.share = max(1, int(settings.active_limit * settings.destination_share))
        self.share_if_ill = min(self.share, settings.window_initial)

    def left(self) -> int:
        """How many more fit in, whatever their destinations."""
        return self.limit - self._total

    def fits(self, destination: str) -> bool:
        """Whether one more for `destination` fits in."""
        share = self.share if destination not in self._ill else self._share_of(destination)
        return self._total < self.limit and self._count.get(destination, 0) < share

    def overfull(self, destination: str) -> bool:
        """Whether more is held for it than its share: it has turned ill since."""
        return self._count.get(destination, 0) > self._share_of(destination)

    def take(self, destination: str) -> bool:
        """Count one more for `destination`, if it fits in."""
        count = self._count.get(destination, 0)
        share = self.share if destination not in self._ill else self._share_of(destination)
        if self._total >= self.limit or count >= share:
            return False
        self._count[destination] = count + 1
        self._total += 1
        return True

    def remove(self, destination: str, count: int) -> None:
        left = self._count[destination] - count
        if left:
            self._count[destination] = left
        else:
            del self._count[destination]
        self._total -= count

    def taken(self) -> dict[str, int]:
        """What each destination has of its share, as `Tx.claim` wants it."""
        taken = dict(self._count)
        for name in self._ill:
            taken[name] = taken.get(name, 0) + self.share - self._share_of(name)
        return taken

    def full(self, count: Mapping[str, int]) -> set[str]:
        """The destinations that have all of their share by this count; ill ones left out, since
        more of them is wanted only once they recover."""
        return {name for name, n in count.items() if n >= self.share and name not in self._ill}

    def _share_of(self, destination: str) -> int:
        if destination not in self._ill:
            return self.share
        return 0 if self._destinations.is_shut(destination) else self.share_if_ill
