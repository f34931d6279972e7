"""Several real nodes on one storage, for tests: each started, killed, paused and drained apart.

    with Cluster(tmp_path, [storage_url] * 3, lease_ttl="2s") as cluster:
        cluster.nodes[0].kill()

Every callback says who sent it: the label of the node's run is the prefix of its
`Primeflow-Signature`, as in `2.1=<hex>`, first run of node 2; `audit.sent` reads it. Two nodes are
told apart by nothing else that a receiver sees.

In the end it prints what the nodes have warned of, which pytest shows with a test that fails.
"""

import base64
import secrets
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import httpx

from primeflowd.testing.daemon_process import DaemonProcess, eventually


class Node(DaemonProcess):
    """One node of a cluster; see DaemonProcess.

    Attributes:
        number: counted from 1.
        runs: how many times it was started.
    """

    def __init__(
        self, number: int, directory: Path, settings: str, environment: dict[str, str]
    ) -> None:
        self.number = number
        self.runs = 0
        self._settings = settings
        super().__init__(directory, settings, environment)

    @property
    def label(self) -> str:
        """The present run, as in the callbacks that it sends."""
        return f"{self.number}.{self.runs}"

    @property
    def name(self) -> str:
        """The present run, as in the storage: there its node id begins with this."""
        name: str = self.events("daemon_ready")[-1]["node_id"]
        return name

    def start(self) -> Self:
        self.runs += 1
        self.configure(f'{self._settings}\n[signing]\nhmac_prefix = "{self.label}="\n')
        return super().start()

    def pause(self) -> None:
        """`kill -STOP`: it stands still, as in a machine that is suspended, until `resume`."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def running(self) -> bool:
        return self.runs > 0 and self.process.poll() is None

    def ready(self) -> bool:
        """Whether /readyz is green. False too if there is no answer within a second."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=1).is_success
        except (httpx.HTTPError, httpx.InvalidURL):
            return False


class Cluster:
    """Nodes that run while the `with` block does, with an org `acme` that has a signing secret.

    Args:
        directory: each node keeps its own state in a directory of its own below it.
        urls: `storage.url` of each node; all lead to the same storage, some through proxies, say.
        settings: TOML tables for every node, none of them `[api]`, `[signing]` or `[storage]`.
        port: shared by all nodes, by SO_REUSEPORT; None gives each its own.

    Attributes:
        key: an API key of the org, with all scopes.
        lease_ttl: in seconds.
    """

    def __init__(
        self,
        directory: Path,
        urls: Sequence[str],
        settings: str = "",
        *,
        lease_ttl: float = 2.0,
        port: int | None = None,
    ) -> None:
        self.lease_ttl = lease_ttl
        api = f'[api]\nbind = "127.0.0.1:{port or 0}"\n'
        if port is not None:
            api += "reuse_port = true\n"
        environment = {"PRIMEFLOWD_MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode()}
        self.nodes = [
            Node(
                number,
                directory / f"node-{number}",
                f'{api}[storage]\nurl = "{url}"\nlease_ttl = "{round(lease_ttl * 1000)}ms"\n'
                + settings,
                environment,
            )
            for number, url in enumerate(urls, 1)
        ]

    def __enter__(self) -> Self:
        try:
            # All at once, on a storage that may be empty: that is how clusters are started.
            with ThreadPoolExecutor(len(self.nodes)) as threads:
                list(threads.map(Node.start, self.nodes))
            self.key = self.nodes[0].create_key()
            with self.client() as client:
                client.post("/v1/callback-secrets", json={}).raise_for_status()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._kill()
        for line in story({f"node {node.number}": node.log for node in self.nodes}):
            sys.stdout.write(f"{line}\n")

    def client(self, number: int | None = None) -> httpx.Client:
        """A client of this node, or of any that runs; the caller closes it."""
        node = self.nodes[number - 1] if number is not None else self.running()[0]
        return node.client(self.key)

    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.running()]

    def urls(self) -> list[str]:
        """Of the nodes that run and have said where."""
        return [url for node in self.running() if (url := node.url)]

    def node(self, label: str) -> Node:
        """The node whose run, this or an earlier one, has this label."""
        return self.nodes[int(label.partition(".")[0]) - 1]

    def settle(self, seconds: float = 60.0) -> None:
        """Wait until every delivery has ended, and no node that runs holds any.

        Raises:
            AssertionError: that was not so within `seconds`.
        """
        with self.client() as client:

            def ended() -> bool:
                # In storage. A list goes by what its own node is sending, and of two lists one asks
                # too early and the other too late for what is sent meanwhile.
                shape = client.get("/v1/deliveries/shape").raise_for_status().json()
                return bool(shape["total"]["waiting"] == 0)

            eventually(ended, seconds, every=0.1)
        for node in self.running():
            with node.client(self.key) as client:

                def free(client: httpx.Client = client) -> bool:
                    return bool(client.get("/v1/stats").json()["held"] == 0)

                eventually(free, seconds, every=0.1)

    def terminate(self) -> None:
        """Drain the nodes that run, one after the other.

        Raises:
            AssertionError: one exited with another code than 0.
        """
        for node in self.running():
            assert node.terminate() == 0, f"node {node.number} exited with an error"

    def _kill(self) -> None:
        for node in self.nodes:
            if node.runs and hasattr(node, "process"):
                node.kill()


_HEAD = ("timestamp", "level", "event")
# What tells how leases went, besides warnings.
_TURNS = ("daemon_ready", "lease_renewed", "claims_recovered", "storage_recovered", "drain_started")


def story(logs: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[str]:
    """What these logs warn of, and how the leases went, in the order of time. What a log says
    several times on end is a single line."""
    told: list[tuple[str, str]] = []
    for name, log in logs.items():
        since = ""
        telling = (
            line
            for line in log
            if line["event"] in _TURNS or line.get("level") not in ("debug", "info")
        )
        for (event, _), same in groupby(telling, lambda line: (line["event"], line.get("text"))):
            first, *more = same
            # A line that is not the log's own, as of a traceback, comes after one that is.
            since = first.get("timestamp", since)
            words = [since, name, event]
            words += (f"{key}={value}" for key, value in first.items() if key not in _HEAD)
            told.append((since, " ".join(words) + (f" ({1 + len(more)} times)" if more else "")))
    return [line for _, line in sorted(told, key=itemgetter(0))]
