"""The README is complete: every setting, and a line as it is written."""

import json
import re
import tomllib
from pathlib import Path

from primeflowd_archive.lines import Line
from primeflowd_archive.settings import Settings, read

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_its_configuration_has_every_setting_and_the_defaults() -> None:
    table = tomllib.loads(block("toml"))["plugins"]["archive"]
    assert list(table) == list(Settings.__struct_fields__)
    settings = read(table)
    bare = {key: value for key, value in table.items() if key not in ("keep_files", "keep_for")}
    assert read(bare) == read({"directory": settings.directory})
    for name in table:
        assert f"\n| `{name}` | " in README


def test_its_line_has_every_field() -> None:
    assert [*json.loads(block("json")), "response_body"] == list(Line.__struct_fields__)
