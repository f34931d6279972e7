"""`[plugins.http-signatures]` is checked, and every mistake names its key."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from primeflowd.durations import Duration
from primeflowd.errors import ConfigError
from primeflowd_http_signatures.settings import DERIVED, FIELDS, Settings, read


def test_readme_shows_every_setting_and_its_default() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```toml\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert read(tomllib.loads(block)["plugins"]["http-signatures"]) == Settings()
    for name in Settings.__struct_fields__:
        assert f"| `{name}` |" in readme
        assert f"\n{name} = " in block or f"\n# {name} = " in block
    for component in DERIVED + FIELDS:
        assert f"`{component}`" in readme


def test_nothing_is_required() -> None:
    assert read({}) == Settings()


def test_every_key_is_taken() -> None:
    table = {
        "components": ["content-digest", "@path"],
        "label": "sig-1",
        "tag": "",
        "keyid": "https://acme.example/keys/{thumbprint}",
        "include_nonce": False,
        "expires_after": "5m",
    }
    assert read(table) == Settings(
        components=("content-digest", "@path"),
        label="sig-1",
        tag="",
        keyid="https://acme.example/keys/{thumbprint}",
        include_nonce=False,
        expires_after=Duration("5m"),
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"componets": []}, "componets"),
        ({"components": "content-digest"}, "components: "),
        ({"components": [1]}, r"components\[0\]: "),
        ({"components": ["content-digest", "@status"]}, 'components: "@status" cannot be signed'),
        ({"components": ["content-digest", "Content-Type"]}, "components: "),
        ({"components": ["content-digest"] * 2}, "components: .* twice"),
        ({"components": ["@method"]}, 'components: "content-digest" is missing'),
        ({"components": []}, 'components: "content-digest" is missing'),
        ({"label": "Sig"}, "label: "),
        ({"label": ""}, "label: "),
        ({"label": "a=b"}, "label: "),
        ({"tag": "ö"}, "tag: "),
        ({"tag": "a\nb"}, "tag: "),
        ({"tag": "x" * 257}, "tag: "),
        ({"keyid": "main"}, "keyid: "),
        ({"keyid": "{key}"}, "keyid: "),
        ({"keyid": "{thumbprint!r}"}, "keyid: "),
        ({"keyid": "{thumbprint}{"}, "keyid: "),
        ({"keyid": "}{thumbprint}"}, "keyid: "),
        ({"keyid": "{{thumbprint}}"}, "keyid: "),
        ({"keyid": "a}b{thumbprint}"}, "keyid: "),
        ({"include_nonce": "yes"}, "include_nonce: "),
        ({"expires_after": 300}, "expires_after: .*in quotes"),
        ({"expires_after": "5 minutes"}, "expires_after: not a duration"),
        ({"expires_after": "999ms"}, "expires_after: expected 1s to 24h"),
        ({"expires_after": "25h"}, "expires_after: expected 1s to 24h"),
    ],
)
def test_mistakes_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(table)
