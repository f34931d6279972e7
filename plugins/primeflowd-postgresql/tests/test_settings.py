"""The `[plugins.postgresql]` table."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from primeflowd.config import from_mapping
from primeflowd.durations import Duration
from primeflowd.errors import ConfigError
from primeflowd.instants import SECOND
from primeflowd_postgresql import Postgresql
from primeflowd_postgresql.settings import Settings, read


def test_defaults() -> None:
    assert read({}) == Settings()
    assert Settings().pool_size == 4
    assert Settings().timeout.micros == 10 * SECOND


def test_what_is_given() -> None:
    settings = read({"pool_size": 9, "timeout": "1m"})
    assert settings.pool_size == 9
    assert settings.timeout.micros == 60 * SECOND


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"poolsize": 4}, "poolsize: unknown key; known here: pool_size, timeout"),
        ({"pool_size": 0}, "pool_size: expected `int` >= 1"),
        ({"pool_size": 101}, "pool_size: expected `int` <= 100"),
        ({"pool_size": True}, "pool_size: expected `int`, got `bool`"),
        ({"timeout": 10}, 'timeout: expected a duration in quotes, as "10s"'),
        ({"timeout": "soon"}, 'timeout: .*; write it as "10s"'),
        ({"timeout": "1s"}, 'timeout: expected from "2s" to "10m", not "1s"'),
        ({"timeout": "11m"}, 'timeout: expected from "2s" to "10m", not "11m"'),
    ],
)
def test_mistakes_are_named(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}$"):
        read(table)


@pytest.mark.parametrize(
    ("timeout", "lease_ttl", "outlasts"),
    [("10s", "15s", False), ("10s", "14s", True), ("2s", "3s", False), ("2s", "2s", True)],
)
def test_locks_may_outlast_a_lease(timeout: str, lease_ttl: str, *, outlasts: bool) -> None:
    assert Settings(timeout=Duration(timeout)).outlasts(Duration(lease_ttl)) == outlasts


@pytest.mark.parametrize("lease_ttl", ["15s", "10s"])
@pytest.mark.parametrize("node_id", ["node-1", None])
def test_a_node_whose_locks_may_outlast_its_lease_warns(
    lease_ttl: str, node_id: str | None
) -> None:
    """At start; who only visits has no lease."""
    storage = {"url": "postgresql://db.example/primeflowd", "lease_ttl": lease_ttl}
    plugin = Postgresql()
    with capture_logs() as logs:
        # Connects to nothing before it is entered.
        assert plugin.open_storage(from_mapping({"storage": storage}), node_id) is not None
    warns = lease_ttl == "10s" and node_id is not None
    assert [line["event"] for line in logs] == ["postgresql_timeout_too_long"] * warns
