"""The `[plugins.archive]` table: what is taken, and that a refusal names the key."""

from typing import Any

import pytest

from primeflowd.durations import Duration
from primeflowd.errors import ConfigError
from primeflowd_archive.settings import Settings, read


def test_only_the_directory_is_needed() -> None:
    settings = read({"directory": "/srv/archive"})
    assert settings == Settings(directory="/srv/archive")
    assert (settings.rotate, settings.rotate_bytes) == ("day", 64 * 1024 * 1024)
    assert (settings.compress, settings.fsync, settings.response_body) == (False, False, False)
    assert (settings.keep_files, settings.keep_for) == (None, None)


def test_all_settings_are_read() -> None:
    table: dict[str, Any] = {
        "directory": "/srv/archive",
        "rotate": "hour",
        "rotate_bytes": 1024,
        "compress": True,
        "fsync": True,
        "keep_files": 3,
        "keep_for": "90d",
        "response_body": True,
    }
    assert set(table) == set(Settings.__struct_fields__)
    assert read(table) == Settings(**{**table, "keep_for": Duration("90d")})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"directory": None}, "directory: expected `str`, got `null`"),
        ({"directory": "archive"}, "directory: expected an absolute path"),
        ({"directory": ""}, "directory: expected an absolute path"),
        ({"dir": "/a"}, "dir: unknown key; known here: directory, rotate, "),
        ({"rotate": "week"}, 'rotate: expected "day" or "hour", not \'week\''),
        ({"rotate_bytes": 10}, "rotate_bytes: expected `int` >= 1024"),
        ({"rotate_bytes": "64M"}, "rotate_bytes: expected `int`, got `str`"),
        ({"compress": "gzip"}, "compress: expected `bool`, got `str`"),
        ({"keep_files": 0}, "keep_files: expected `int` >= 1"),
        ({"keep_for": 90}, 'keep_for: expected a duration in quotes, as "90d"'),
        ({"keep_for": "90 days"}, "keep_for: not a duration: '90 days'; write it as"),
        ({"keep_for": "0"}, "keep_for: expected more than nothing"),
    ],
)
def test_a_refusal_names_the_key(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read({"directory": "/srv/archive", **table})
    assert str(caught.value).startswith(message)


def test_the_directory_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"^directory: it is missing$"):
        read({})
