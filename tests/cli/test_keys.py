"""`keys`: before a daemon ever ran, beside a running one (contract 2.1, 2.2)."""

import json
import re
from pathlib import Path

import pytest

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from tests.cli.conftest import Run


def listed(primeflowd: Run, *words: str) -> list[dict[str, object]]:
    done = primeflowd("keys", "list", "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def test_create_prints_the_key_and_nothing_else(primeflowd: Run, tmp_path: Path) -> None:
    """2.1: `pfk_` and 40 lower-case letters and digits; works before the daemon ever ran."""
    done = primeflowd("keys", "create", "--org", "acme", "--label", "ci")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"pfk_[a-z0-9]{40}\n", done.stdout)
    database = (tmp_path / "state" / "primeflowd" / "primeflowd.db").read_bytes()
    assert done.stdout.strip().encode() not in database
    [key] = listed(primeflowd)
    assert key["org_id"] == "acme"
    assert key["scopes"] == ["admin"]
    assert key["label"] == "ci"
    assert key["revoked_at"] is None
    assert done.stdout.startswith(str(key["key_prefix"]))
    assert done.stdout.strip() not in json.dumps(key)
    assert "digest" not in key


def test_scopes_and_operator_keys(primeflowd: Run) -> None:
    """2.2: scopes as given; the org `*` makes an operator key."""
    words = ["--scope", "batches:*", "--scope", "policies:read"]
    assert primeflowd("keys", "create", "--org", "*", *words).returncode == 0
    [key] = listed(primeflowd)
    assert (key["org_id"], key["scopes"]) == ("*", ["batches:*", "policies:read"])


@pytest.mark.parametrize(
    "words",
    [
        ["--org", ""],
        ["--org", "a\nb"],
        ["--org", "x" * 129],
        ["--org", "acme", "--scope", "everything"],
        ["--org", "acme", "--label", "a\x00b".replace("\x00", "\x07")],
    ],
)
def test_bad_keys_are_refused_on_one_line(primeflowd: Run, words: list[str]) -> None:
    """2.3, 2.10: org ids and labels have 1 to 128 printable characters; scopes are known ones."""
    done = primeflowd("keys", "create", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"primeflowd: error: .+\n", done.stderr)


def test_list_is_newest_first_and_by_org(primeflowd: Run) -> None:
    for org in ("acme", "umbrella", "acme"):
        primeflowd("keys", "create", "--org", org)
    assert [key["org_id"] for key in listed(primeflowd)] == ["acme", "umbrella", "acme"]
    assert [key["org_id"] for key in listed(primeflowd, "--org", "umbrella")] == ["umbrella"]


def test_table_has_a_line_for_each_key(primeflowd: Run) -> None:
    """For people, and for grep: no markup is read into a label, no line is folded in a pipe."""
    primeflowd("keys", "create", "--org", "acme", "--label", "[bold]night job[/bold]")
    heading, row = primeflowd("keys", "list").stdout.splitlines()
    assert heading.split() == ["ID", "ORG", "KEY", "SCOPES", "LABEL", "CREATED", "REVOKED"]
    assert "[bold]night job[/bold]" in row
    assert str(listed(primeflowd)[0]["id"]) in row
    # As in the other tables: times to the second, a dash for what is not there.
    assert re.search(r" \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  - *$", row)


def test_revoke_takes_an_id(primeflowd: Run) -> None:
    primeflowd("keys", "create", "--org", "acme")
    key_id = str(listed(primeflowd)[0]["id"])
    assert primeflowd("keys", "revoke", key_id).stdout == f"revoked {key_id}\n"
    revoked_at = listed(primeflowd)[0]["revoked_at"]
    assert revoked_at is not None
    assert primeflowd("keys", "revoke", key_id).returncode == 0
    assert listed(primeflowd)[0]["revoked_at"] == revoked_at


def test_revoke_of_an_unknown_id(primeflowd: Run) -> None:
    done = primeflowd("keys", "revoke", "nothing")
    assert (done.returncode, done.stderr) == (
        1,
        "primeflowd: error: no key has the id 'nothing'\n",
    )


def test_memory_storage_cannot_be_visited(primeflowd: Run, tmp_path: Path) -> None:
    (tmp_path / "primeflowd.toml").write_text('[storage]\nurl = "memory://"\n')
    done = primeflowd("keys", "create", "--org", "acme")
    assert (done.returncode, done.stdout) == (1, "")
    assert "memory://" in done.stderr


def test_keys_come_and_go_while_the_daemon_runs(tmp_path: Path) -> None:
    """2.1: a key made beside the daemon works at once; a revoked one stops within seconds."""
    with DaemonProcess(tmp_path) as daemon:
        key = daemon.create_key("acme")
        with daemon.client(key) as client:
            assert client.get("/v1/batches").status_code == 200
            [made] = json.loads(daemon.command("keys", "list", "--json"))
            daemon.command("keys", "revoke", made["id"])
            eventually(lambda: client.get("/v1/batches").status_code == 401)
        assert daemon.terminate() == 0
