"""The `[plugins.postgresql]` table."""

from typing import Any

import pytest

from primeflowd.errors import ConfigError
from primeflowd.instants import SECOND
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
