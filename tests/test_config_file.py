"""The commented configuration file says the truth about every setting."""

import re
import tomllib
from pathlib import Path

from primeflowd import config, config_file

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"


def uncommented(text: str) -> str:
    return re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)


def test_example_is_the_rendering() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == config_file.render(), (
        "config.example.toml is stale: CONTRIBUTING.md has the command that renders it"
    )


def test_as_it_stands_it_changes_nothing() -> None:
    assert config.from_mapping(tomllib.loads(config_file.render())) == config.Config()


def test_uncommenting_every_line_sets_the_defaults() -> None:
    text = uncommented(config_file.render())
    assert config.from_mapping(tomllib.loads(text)) == config.Config()


def test_every_setting_stands_in_its_table_with_its_meaning() -> None:
    text = uncommented(config_file.render())
    tables = tomllib.loads(text)
    prose = " ".join(text.replace("\n# ", " ").split())
    for table, key, default, description in config.settings():
        assert description, f"{table}.{key} has no description"
        assert " ".join(description.split()) in prose
        if default is None:
            assert f"# {key} is left out by default" in text
        else:
            where, at = tables, tomllib.loads(f"[{table}]" if table else "")
            while at:
                [(name, at)] = at.items()
                where = where[name]
            assert key in where
