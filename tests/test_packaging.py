"""What the Debian package is made of: the manual page, the completion, the scripts, the README.

The package itself is built and installed by packaging/test_debian.py.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from primeflowd.cli import primeflowd as command_line
from tests.test_docs import leaf_commands
from tests.test_systemd import directives

ROOT = Path(__file__).parent.parent
DEBIAN = ROOT / "packaging" / "debian"


@pytest.fixture(scope="module")
def page() -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "packaging" / "manual.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def test_manual_page_has_every_command_and_option(page: str) -> None:
    plain = re.sub(r"\\(&|f[BR])", "", page).replace("\\-", "-").replace("\\e", "\\")
    sections = re.split(r'^\.S[SH] "?', plain, flags=re.M)
    for command in leaf_commands(command_line, "primeflowd"):
        [section] = [text for text in sections if re.match(rf'{command}[ "]', text)]
        parser: click.Command = command_line
        for word in command.split()[1:]:
            assert isinstance(parser, click.Group)
            found = parser.get_command(click.Context(parser), word)
            assert found is not None
            parser = found
        for parameter in parser.params:
            if isinstance(parameter, click.Option):
                assert any(re.search(rf"{name}\b", section) for name in parameter.opts), command
    [common] = [text for text in sections if text.startswith("COMMON OPTIONS")]
    assert ".TP\n--config FILE\n" in common


def test_manual_page_is_complete(page: str) -> None:
    assert '.TH PRIMEFLOWD 8 "1970-01-01"' in page
    assert "@" not in re.sub(r"primeflowd@\.service", "", page)


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_man_has_no_complaint(page: str, tmp_path: Path) -> None:
    path = tmp_path / "primeflowd.8"
    path.write_text(page)
    for width in ("60", "80", "120"):
        done = subprocess.run(
            ["man", "--warnings=w", "--local-file", path],
            env=os.environ | {"MANROFFSEQ": "", "MANWIDTH": width, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "COMMANDS" in done.stdout


def test_bash_completes_commands_and_options() -> None:
    """By asking the program: the script knows none of them."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = subprocess.run(
        [sys.executable, "-m", "primeflowd"],
        env=environment | {"_PRIMEFLOWD_COMPLETE": "bash_source"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    completed = subprocess.run(
        ["bash", "-ec", f"primeflowd() {{ :; }}; {script}\n{ASK}", "bash", f"{sys.executable}"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert completed.splitlines() == ["deliveries", "--max-retries"]


ASK = """
program=$(mktemp); trap 'rm "$program"' EXIT
printf '#!/bin/sh\\nexec "%s" -m primeflowd "$@"\\n' "$1" > "$program"; chmod +x "$program"
COMP_WORDS=(primeflowd deliv) COMP_CWORD=1; _primeflowd_completion "$program"
echo "${COMPREPLY[@]}"; COMPREPLY=()
COMP_WORDS=(primeflowd policies set --max) COMP_CWORD=3; _primeflowd_completion "$program"
echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize("name", ["build", "postinst", "prerm", "postrm"])
def test_scripts_are_understood_and_can_be_run(name: str) -> None:
    shell = "bash" if name == "build" else "sh"
    subprocess.run([shell, "-n", DEBIAN / name], check=True)
    assert os.access(DEBIAN / name, os.X_OK)


def test_the_units_are_what_the_package_expects() -> None:
    """It puts a user of its own in the place of the dynamic one."""
    for unit in ("primeflowd.service", "primeflowd@.service"):
        lines = directives(unit)
        assert "DynamicUser=yes" in lines
        assert "ExecStart=/usr/bin/primeflowd run --config /etc/primeflowd/config.toml" in lines
        assert "StateDirectory=primeflowd" in lines
    build = (DEBIAN / "build").read_text()
    assert '"/var/lib/primeflowd"' in build
    assert '\n# state_directory = ""\n' in (ROOT / "config.example.toml").read_text()


def test_readme_installs_the_package() -> None:
    """In five commands at most, with what there is."""
    section = (ROOT / "README.md").read_text().split("\n## Installing it\n")[1].split("\n## ")[0]
    [commands] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    lines = commands.splitlines()
    assert lines[:2] == [
        "apt-get install -y python3-venv",
        'apt-get install -y "$(packaging/debian/build)"',
    ]
    assert len(lines) <= 5
    for word in ("Upgrade", "Roll back", "Uninstall", "pipx install", "uv tool install"):
        assert word in section
