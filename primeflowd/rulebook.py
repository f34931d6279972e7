"""The rules of all destinations as this node has them, and which destinations are to be disabled.

Puts the tables of the configuration file and the policies in storage together, and hands what they
come to on to holdings. A change made through this node holds at once, one of another node
after LOOK_EVERY seconds at most: until then that node may still begin attempts.

A destination whose every attempt fails for `disable_after` is disabled, whatever the failures are:
connection refused, a timeout, or an answer that is no 2xx. One success, of whatever org, through
whatever node, begins anew. Since when it fails is counted in memory and written down after
WRITE_AFTER, or half of that time: a restart forgets no more than that, and a destination that fails
for a minute costs no write. One that answers 410 is disabled at once where its policy says so: not
by default, as a 410 is about one URL, and others of the same host may be well.

Blocks on storage, in a task of its own; while that is out of reach the rules stay as they are.
"""

from collections.abc import Callable, Mapping
from typing import Final

import structlog
import trio

from primeflowd import destination_policies as policies
from primeflowd import destination_rules
from primeflowd.clock import Clock
from primeflowd.config import Config
from primeflowd.destination import Held
from primeflowd.destination_policies import Configured, Turn
from primeflowd.destination_rules import Rules
from primeflowd.durations import shown
from primeflowd.errors import MasterKeyError, StorageUnavailable
from primeflowd.events import Event, destination_disabled
from primeflowd.hookspecs import Storage, Tx
from primeflowd.instants import HOUR, Micros
from primeflowd.keyring import Keyring
from primeflowd.model import DestinationPolicy, Outcome, Verdict

log = structlog.get_logger()

LOOK_EVERY: Final = 5.0
"""Seconds until a change made through another node is seen here, at most."""

WRITE_AFTER: Final[Micros] = HOUR
"""How long a destination has failed before that is written down."""

# Most destinations whose failing is counted and not yet written down.
_COUNTED: Final = 10_000
_GONE: Final = "it answered 410"
_NONE: Final = Rules()


class Rulebook:
    """Made with the node.

    Attributes:
        failing: the destinations of which a success matters.
        on_event: told, after the commit, that this node has disabled a destination, or that it was
            disabled through its API. Must not raise or block.
    """

    def __init__(
        self,
        storage: Storage,
        keyring: Keyring,
        clock: Clock,
        config: Config,
        govern: Callable[[Mapping[str, Rules]], None],
    ) -> None:
        """`govern` is given all rules whenever one has changed."""
        self.on_event: Callable[[Event], None] = lambda event: None
        self._storage = storage
        self._keyring = keyring
        self._clock = clock
        self._configured: Configured = config.destinations
        self._disable_after = config.delivery.disable_after.micros
        self._govern = govern
        self._version: str | None = None
        self._loaded = False
        self._stored: dict[str, DestinationPolicy] = {}
        self._rules: dict[str, Rules] = {}
        # Since when every attempt of this node has failed, by destination.
        self._since: dict[str, Micros] = {}
        # The destinations of which something is to be written down, and what.
        self._tasks: dict[str, Callable[[Tx], str | None]] = {}
        self.failing: set[str] = set()
        self._wake = trio.Event()

    def ended(self, held: Held, outcome: Outcome, verdict: Verdict) -> None:
        """An attempt has ended."""
        name, rules = held.delivery.destination, held.rules
        if verdict.decision == "success":
            self._well(name)
            return
        if outcome.failure in ("internal_error", "url_not_allowed", "interrupted", "cancelled"):
            # It says nothing about the destination.
            return
        if rules is not None and rules.disable_when_gone and outcome.status_code == 410:
            self._do(name, lambda tx: self._disable(tx, name, _GONE))
            return
        after = (rules.disable_after if rules is not None else 0) or self._disable_after
        if not after:
            return
        if name not in self._since and len(self._since) >= _COUNTED:
            return
        since = self._since.setdefault(name, outcome.ended_at)
        self.failing.add(name)
        policy = self._stored.get(name)
        if policy is not None and policy.failing_since is not None:
            since = policy.failing_since
            if outcome.ended_at - since >= after and policy.disabled_reason is None:
                reason = f"every attempt has failed for {shown(outcome.ended_at - since)}"
                before = outcome.ended_at - after
                self._do(name, lambda tx: self._disable(tx, name, reason, before))
        elif outcome.ended_at - since >= min(WRITE_AFTER, after // 2):
            self._do(name, lambda tx: self._note(tx, name, since))

    def rules(self, destination: str) -> Rules:
        """What holds for a destination on this node."""
        return self._rules.get(destination, _NONE)

    def disabled(self) -> int:
        """How many destinations are disabled, whatever their deliveries do."""
        return sum(rules.disabled is not None for rules in self._rules.values())

    def changed(self, destination: str, turn: Turn | None) -> None:
        """A policy was changed through this node, or may have been."""
        if turn is not None:
            self._tell(destination, turn)
        self.rouse()

    def rouse(self) -> None:
        """Look soon."""
        self._wake.set()

    def reconfigure(self, config: Config) -> None:
        """Have other tables of the configuration file hold from now on."""
        self._configured = config.destinations
        self._disable_after = config.delivery.disable_after.micros
        self._apply()

    async def load(self) -> None:
        """Have the rules hold, before anything is sent.

        Raises:
            StorageUnavailable: they cannot be read.
        """
        await self._look()

    async def run(self) -> None:
        """Look what has changed, and write down what has come up, until cancelled."""
        while True:
            self._wake = trio.Event()
            try:
                await self._write_down()
                await self._look()
            except StorageUnavailable as error:
                log.warning("destination_policies_not_read", error=str(error))
                await trio.sleep(1)
            with trio.move_on_after(LOOK_EVERY):
                await self._wake.wait()

    async def _look(self) -> None:
        known = self._version

        def read(tx: Tx) -> tuple[str | None, list[DestinationPolicy]] | None:
            version = tx.note(policies.VERSION)
            if self._loaded and version == known:
                return None
            return version, tx.destination_policies()

        found = await self._storage.read(read)
        if found is None:
            return
        self._version, stored = found
        former, self._stored = self._stored, {policy.destination: policy for policy in stored}
        self._loaded = True
        for name, policy in former.items():
            now = self._stored.get(name)
            if policy.failing_since is not None and (now is None or now.failing_since is None):
                # It was well, as another node has seen; or somebody enabled it.
                self._since.pop(name, None)
        self._apply()

    def _apply(self) -> None:
        self._rules = {}
        for name in self._stored.keys() | self._configured.keys():
            rules = self._rules_of(name)
            if rules != Rules():
                self._rules[name] = rules
        self._count_failing()
        self._govern(self._rules)

    def _rules_of(self, name: str) -> Rules:
        policy, configured = self._stored.get(name), self._configured.get(name)
        reason = policies.disabled_reason(policy, configured)
        settings = policies.settings_of(policy, configured)
        try:
            stored = {} if configured is not None else policies.headers_of(policy, self._keyring)
        except MasterKeyError as error:
            # Without them the receiver would refuse every callback: those wait instead.
            log.error("destination_headers_unreadable", destination=name, error=str(error))
            return Rules(disabled="its headers cannot be decrypted", shut=True)
        return destination_rules.make(settings, {**settings.headers, **stored}, reason)

    def _count_failing(self) -> None:
        stored = {name for name, each in self._stored.items() if each.failing_since is not None}
        self.failing = stored | self._since.keys()

    def _well(self, name: str) -> None:
        self._since.pop(name, None)
        self.failing.discard(name)
        policy = self._stored.get(name)
        if policy is not None and policy.failing_since is not None:
            self._do(name, lambda tx: self._note(tx, name, None))

    def _do(self, name: str, task: Callable[[Tx], str | None]) -> None:
        """Have something written down about a destination; the latest counts."""
        self._tasks[name] = task
        self.rouse()

    def _note(self, tx: Tx, name: str, since: Micros | None) -> None:
        policies.note_failing(tx, name, since, self._clock.now())

    def _disable(
        self, tx: Tx, name: str, reason: str, failing_before: Micros | None = None
    ) -> str | None:
        done = policies.disable(tx, name, reason, self._clock.now(), failing_before)
        return reason if done else None

    async def _write_down(self) -> None:
        tasks, self._tasks = self._tasks, {}
        if not tasks:
            return

        def write(tx: Tx) -> dict[str, str | None]:
            return {name: task(tx) for name, task in tasks.items()}

        try:
            disabled = await self._storage.write(write)
        except StorageUnavailable:
            self._tasks = tasks | self._tasks
            raise
        for name, reason in disabled.items():
            if reason is not None:
                self._tell(name, Turn(reason))

    def _tell(self, name: str, turn: Turn) -> None:
        if turn.disabled is None:
            self._since.pop(name, None)
            log.info("destination_enabled", destination=name)
        else:
            event = destination_disabled(name, turn.disabled, self._clock.now())
            log.warning(event.log_name, **event.data)
            self.on_event(event)
