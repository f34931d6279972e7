"""Reloading: what is compared, what stays as it was, and what a cancelled reload leaves behind.

What a real daemon does with it is in acceptance/test_reload.py.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from primeflowd import config
from primeflowd.config import Config, from_mapping
from primeflowd.errors import ConfigError, PluginError
from primeflowd.plugins import Plugins
from primeflowd.reload import FIXED, LIVE, Prepared, Reloaded, Reloader, differences
from tests.distributions import Distributions, enabling


class Daemon:
    """A reloader, and what it told whom."""

    def __init__(self, before: Config, source: Callable[[], Config]) -> None:
        self.applied: list[Prepared] = []
        self.told: list[tuple[str, ...]] = []
        self.reloader = Reloader(
            before, source, Plugins(before), self.applied.append, self.tell, lambda: "ready"
        )

    async def tell(self, *assignments: str) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(tuple(one.split("=")[0] for one in assignments))

    async def reload(self) -> Reloaded:
        return await self.reloader.reload()


def test_every_setting_is_reloaded_or_says_why_not() -> None:
    """8: whoever adds a setting says here which it is, and sees to it in Node._apply."""
    names = {f"{table}.{key}" if table else key for table, key, *_ in config.settings()}
    # The tables of destinations are reloaded as a whole.
    names = {name for name in names if not name.startswith("destinations.")}
    assert LIVE | FIXED.keys() == names
    assert not LIVE & FIXED.keys()


def test_readme_says_what_takes_a_restart() -> None:
    """8: each by its name, in the paragraph about it."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    [paragraph] = re.findall(r"^These take a restart.*?\n\n", readme, re.DOTALL | re.MULTILINE)
    named = set(re.findall("`([a-z_]+)`", paragraph)) | {"enable"}
    assert {name.rpartition(".")[2] for name in FIXED} <= named
    assert not named & {name.rpartition(".")[2] for name in LIVE}


def test_differences_have_names_and_no_values() -> None:
    before = from_mapping({"plugins": {"a": {"x": 1}, "b": {"password": "hush"}}})
    after = from_mapping(
        {
            "plugins": {"b": {"password": "hush!"}, "c": {}},
            "delivery": {"timeout": "31s", "egress": {"deny": ["192.0.2.0/24"]}},
            "api": {"bind": "127.0.0.1:8081"},
        }
    )
    assert list(differences(before, after)) == [
        "delivery.timeout",
        "delivery.egress.deny",
        "plugins.a",
        "plugins.b",
        "plugins.c",
    ]


async def test_what_takes_a_restart_stays_as_it_was() -> None:
    """8: parts are never shown a setting that does not hold."""
    daemon = Daemon(
        Config(),
        lambda: from_mapping({"storage": {"url": "memory://", "max_backlog": 5}, "api": OTHER_API}),
    )
    done = await daemon.reload()
    assert (done.changed, list(done.needs_restart)) == (
        ("api.rate_limit", "storage.max_backlog"),
        ["api.bind", "storage.url"],
    )
    [applied] = daemon.applied
    assert (applied.config.storage.url, applied.config.storage.max_backlog) == ("", 5)
    assert applied.config.api.bind == Config().api.bind
    again = await daemon.reload()
    assert (again.changed, again.needs_restart) == ((), done.needs_restart)


OTHER_API = {"bind": "127.0.0.1:1", "rate_limit": 2.0}


async def test_refused_is_logged_and_raised() -> None:
    """8: with the reason, and nothing applied; the service manager is told that it is over."""
    daemon = Daemon(Config(), lambda: from_mapping({"signing": {"signers": ["nobody"]}}))
    with capture_logs() as logs, pytest.raises(ConfigError):
        await daemon.reload()
    [event] = logs
    assert (event["event"], event["log_level"]) == ("reload_failed", "error")
    assert 'no signer "nobody"' in event["reason"]
    assert daemon.applied == []
    assert daemon.told == [("RELOADING", "MONOTONIC_USEC"), ("READY", "STATUS")]


async def test_a_plugin_takes_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8: one that is new is not loaded, and its signer is not known before; it must be there."""
    site = Distributions(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    site.install("extra", "raise RuntimeError\n")
    daemon = Daemon(Config(), lambda: enabling("extra"))
    assert list((await daemon.reload()).needs_restart) == ["plugins.enable"]
    daemon = Daemon(Config(), lambda: enabling("extra", signing={"signers": ["theirs"]}))
    with pytest.raises(ConfigError, match=r'no signer "theirs".*plugins.enable takes a restart'):
        await daemon.reload()
    daemon = Daemon(Config(), lambda: enabling("missing"))
    with pytest.raises(PluginError, match='no plugin "missing" is installed'):
        await daemon.reload()


async def test_cancelled_it_changes_nothing(nursery: trio.Nursery) -> None:
    """8: a file system that hangs holds up neither a drain nor the next reload."""
    hanging, answers = threading.Event(), [5, 6]

    def source() -> Config:
        if answers[0] == 5:
            hanging.wait(30)
        return from_mapping({"storage": {"max_backlog": answers.pop(0)}})

    daemon = Daemon(Config(), source)
    with trio.move_on_after(0.05) as scope:
        await daemon.reload()
    assert scope.cancelled_caught
    assert daemon.applied == []
    assert daemon.told[-1] == ("READY", "STATUS")
    answers.pop(0)
    assert (await daemon.reload()).changed == ("storage.max_backlog",)
    assert [one.config.storage.max_backlog for one in daemon.applied] == [6]
    answers.append(7)
    hanging.set()


async def test_one_at_a_time(nursery: trio.Nursery) -> None:
    """8: each sees what the one before left."""
    running: list[int] = []

    def source() -> Config:
        running.append(1)
        assert sum(running) == 1
        running.append(-1)
        return from_mapping({"storage": {"max_backlog": len(running)}})

    daemon = Daemon(Config(), source)
    results: list[Any] = []

    async def one() -> None:
        results.append(await daemon.reload())

    async with trio.open_nursery() as several:
        for _ in range(3):
            several.start_soon(one)
    assert [one.config.storage.max_backlog for one in daemon.applied] == [2, 4, 6]
    kinds = [message[0] for message in daemon.told]
    assert kinds == ["RELOADING", "READY"] * 3
