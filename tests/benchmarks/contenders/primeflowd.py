"""primeflowd: one node or several, real processes with the shipped defaults.

The shipped defaults include the fsync before every answer, two signatures on every callback and
the record of every attempt. Only what a closed machine needs is set: the port and the permission
to send to loopback addresses.
"""

import contextlib
import platform
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from primeflowd import __version__
from tests.benchmarks.contenders import postgresql
from tests.benchmarks.contenders.books import Books, complaint
from tests.benchmarks.contenders.contender import (
    REPOSITORY,
    Bench,
    Contender,
    Producer,
    http_producer,
)
from tests.benchmarks.contenders.node import Node
from tests.benchmarks.machine import Cores

ORG: Final = "bench"
CONNECTIONS: Final = {1: 64, 100: 8}


@dataclass
class Running:
    """Nodes, their databases, and whatever runs beside them."""

    producer: Producer
    nodes: Sequence[Node]
    books: Sequence[Books]
    others: Sequence[int] = ()
    _settled: int = 0

    def roots(self) -> list[int]:
        return [*(node.pid for node in self.nodes), *self.others]

    def complaint(self, accepted: int) -> str | None:
        found = complaint(self.books, accepted - self._settled)
        if found is None:
            # What is settled need not be counted again; that it is repeated, the receiver sees.
            self._settled = accepted
            for each in self.books:
                each.turn_page()
        return found


@dataclass(frozen=True)
class Primeflowd:
    """A definition.

    Attributes:
        nodes: on SQLite each has a database of its own, on PostgreSQL all share one.
        shared: they share the SQLite file, too.
        pinned: each has one of the cores to itself and the load, as `CPUAffinity` of a unit would
            give it; else the kernel moves them.
        settings: further TOML for every node, as `[api]\\nserver = "lean"\\n`.
        tree: the checkout it is run from; another one makes a comparison of two versions.
    """

    name: str
    size: int
    cores: Cores
    nodes: int = 1
    database: Literal["sqlite", "postgresql"] = "sqlite"
    shared: bool = False
    pinned: bool = False
    settings: str = ""
    tree: Path = REPOSITORY

    @property
    def promise(self) -> str:
        if self.database == "sqlite":
            return "SQLite WAL, synchronous=FULL: fsync before the answer, every attempt recorded"
        return "PostgreSQL, synchronous_commit=on: fsync before the answer, every attempt recorded"

    def versions(self, bench: Bench) -> Mapping[str, str]:
        found = {"primeflowd": __version__, "Python": platform.python_version()}
        if self.database == "postgresql":
            return {**found, "PostgreSQL": postgresql.version()}
        return {**found, "SQLite": sqlite3.sqlite_version}

    @contextlib.contextmanager
    def start(self, bench: Bench) -> Iterator[Contender]:
        directory = Path(tempfile.mkdtemp(prefix="primeflowd-", dir=bench.directory))
        try:
            with contextlib.ExitStack() as stack:
                yield self._start(bench, directory, stack)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _start(self, bench: Bench, directory: Path, stack: contextlib.ExitStack) -> Running:
        others: list[int] = []
        shared = self.shared or self.database == "postgresql"
        places = [directory / str(0 if shared else k) for k in range(self.nodes)]
        urls = [f"sqlite:///{place / 'primeflowd.db'}" for place in dict.fromkeys(places)]
        settings = self.settings
        if self.database == "postgresql":
            server = stack.enter_context(postgresql.running(directory, self.cores))
            others, urls = [server.pid], [server.driver_url]
            settings += f'[plugins]\nenable = ["postgresql"]\n[storage]\nurl = "{server.url}"\n'
        nodes = []
        for k, state in enumerate(places):
            # Nodes of one database share the master key, which lies in the state directory.
            nodes.append(Node(state, f"node-{k}", self.tree, self._cores(k), settings))
        start_nodes(nodes, stack, share_key=shared)
        books = [Books(url) for url in urls]
        for each in books:
            stack.callback(each.close)
        target = {"kind": "primeflowd", "nodes": [{"port": n.port, "key": n.key} for n in nodes]}
        settings_ = bench.settings(self.size, CONNECTIONS[self.size], target)
        producer = stack.enter_context(http_producer(settings_, self.cores))
        return Running(producer, nodes, books, others)

    def _cores(self, node: int) -> Cores:
        if not self.pinned:
            return self.cores
        each = sorted(self.cores.server)
        return Cores(frozenset(each[node % len(each) :][:1]), self.cores.load)


def start_nodes(nodes: Sequence[Node], stack: contextlib.ExitStack, share_key: bool) -> None:
    """Start them; each gets a key of ORG and ORG gets a signing secret, as it would in earnest."""
    for node in nodes:
        is_first = node is nodes[0] or not share_key
        node.key = node.command("keys", "create", "--org", ORG) if is_first else nodes[0].key
        node.start()
        stack.push(node.stop_or_kill)
        if is_first:
            # Without a secret callbacks go out unsigned, and the run would fail.
            node.ask("/v1/callback-secrets", {})
