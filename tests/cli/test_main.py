"""What holds for every command: quick, exit codes, errors on one line."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from primeflowd import __version__
from primeflowd.cli import primeflowd as group
from tests.cli.conftest import Run


def test_version(primeflowd: Run) -> None:
    done = primeflowd("--version")
    assert (done.returncode, done.stdout) == (0, f"primeflowd {__version__}\n")


def test_version_loads_no_framework(tmp_path: Path) -> None:
    """Commands are imported when they are named, so that `--version` is quick."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "primeflowd", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "primeflowd.cli" in loaded
    assert not loaded & {"trio", "quart", "sqlalchemy", "hypercorn", "structlog", "rich"}


def test_installed_script_is_the_same() -> None:
    script = Path(sys.executable).with_name("primeflowd")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"primeflowd {__version__}\n"


def test_help_names_every_command(primeflowd: Run) -> None:
    done = primeflowd("--help")
    assert done.returncode == 0
    names = group.list_commands(click.Context(group))
    assert names == [
        *("run", "init", "check-config", "reload", "plugins", "keys", "secrets"),
        *("migrate", "copy-storage", "backup", "restore", "deliveries", "batches"),
        *("destinations", "policies", "why", "qshape", "listen", "send", "demo"),
    ]
    for name in names:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("words", [[], ["deliveries"], ["destinations"], ["secrets"], ["keys"]])
def test_help_says_of_each_command_a_whole_sentence(primeflowd: Run, words: list[str]) -> None:
    told = primeflowd(*words, "--help").stdout
    assert "..." not in told.partition("Commands:")[2]
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize(
    "words", [["nonsense"], ["run", "--nonsense"], ["keys", "create"], ["keys", "revoke"]]
)
def test_usage_errors_exit_with_2(primeflowd: Run, words: list[str]) -> None:
    done = primeflowd(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage: primeflowd" in done.stderr


@pytest.mark.parametrize("command", ["run", "check-config", "keys list"])
def test_operators_mistakes_are_one_line_and_exit_with_1(
    primeflowd: Run, tmp_path: Path, command: str
) -> None:
    """A bad config file: its name, the path of the key, and no traceback."""
    (tmp_path / "bad.toml").write_text("[delivery]\nconcurency = 5\n")
    done = primeflowd(*command.split(), "--config", "bad.toml")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("primeflowd: error: bad.toml: delivery.concurency: unknown key")
    assert len(done.stderr.splitlines()) == 1


def test_missing_config_file_is_an_error_when_named(primeflowd: Run) -> None:
    done = primeflowd("check-config", "--config", "absent.toml")
    assert done.returncode == 1
    assert done.stderr == (
        "primeflowd: error: absent.toml: cannot be read: No such file or directory\n"
    )
