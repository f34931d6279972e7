"""Who saw which callback, and when: two files that the processes of a run share.

Every callback of a run has a number of its own, which stands in the path of its URL. The receiver
keeps a slot for each number in the arrivals file (written through a memory map; the layout is
repeated in receiver.c). Whoever hands callbacks in writes two instants for each number into the
stamps file. Numbers are never used again within a run, so that a late repetition shows.

All instants are nanoseconds of CLOCK_MONOTONIC, which is one for all processes of a machine.
Standard library only: producers in other environments import this.
"""

import os
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

HEADER: Final = struct.Struct("=16Q")
SLOT: Final = struct.Struct("=QIHH")
"""First 2xx (0: none yet), how many 2xx, how many refusals, how many left hanging."""

FAILING: Final = 8
"""Index in the header: so many hosts, from the first on, answer 500 twice, then 200."""

HANGING: Final = 9
"""Index in the header: so many hosts after these never answer."""

CAPACITY: Final = 10
"""Index in the header: how many numbers there are slots for."""

STAMP: Final = 16
"""Bytes in the stamps file for a number: handed in at, accepted at (0: it was not)."""


class Counts(NamedTuple):
    """What the receiver has counted since it started."""

    delivered: int
    """callbacks answered with 200"""
    repeated: int
    """further 200s for callbacks that had theirs"""
    requests: int
    unknown: int
    """requests that were no callback of this run"""
    unsigned: int
    """requests without a header that ends in `signature`"""
    body_bytes: int
    refused: int
    """answered with 500, on purpose"""
    hung: int
    """not answered, on purpose"""


NOTHING: Final = Counts(*[0] * 8)


class Slot(NamedTuple):
    """What became of one number."""

    arrived_at: int
    delivered: int
    refused: int
    hung: int


class Arrivals:
    """The arrivals file, from outside the receiver."""

    def __init__(self, path: Path, capacity: int) -> None:
        self.path = path
        self.capacity = capacity
        header = [0] * 16
        header[CAPACITY] = capacity
        path.write_bytes(HEADER.pack(*header))
        # Sparse: a slot takes memory once its number is used.
        os.truncate(path, HEADER.size + capacity * SLOT.size)
        self._file = os.open(path, os.O_RDWR)

    def counts(self) -> Counts:
        return Counts(*HEADER.unpack(os.pread(self._file, HEADER.size, 0))[:8])

    def control(self, index: int, value: int) -> None:
        """Set FAILING or HANGING; it holds from the next request on."""
        os.pwrite(self._file, value.to_bytes(8, "little"), index * 8)

    def slots(self, first: int, count: int) -> list[Slot]:
        data = os.pread(self._file, count * SLOT.size, HEADER.size + first * SLOT.size)
        return [Slot(*fields) for fields in SLOT.iter_unpack(data)]

    def close(self) -> None:
        os.close(self._file)


def write_stamps(path: Path, first: int, sent: Sequence[int], accepted: Sequence[int]) -> None:
    """Note the numbers `first`, `first + 1`, ...; both sequences are equally long."""
    pairs = array("Q", bytes(STAMP * len(sent)))
    pairs[0::2] = array("Q", sent)
    pairs[1::2] = array("Q", accepted)
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.pwrite(file, pairs.tobytes(), first * STAMP)
    finally:
        os.close(file)


def read_stamps(path: Path, first: int, count: int) -> list[tuple[int, int]]:
    """(handed in at, accepted at) of these numbers."""
    with path.open("rb") as file:
        file.seek(first * STAMP)
        pairs = array("Q", file.read(count * STAMP))
    return list(zip(pairs[0::2], pairs[1::2], strict=True))
