"""Which API commands ask, with which key, and how they tell of what went wrong."""

import re
from pathlib import Path

from tests.cli.api_commands import Desk
from tests.cli.conftest import Run

NO_SUCH = "01920000-0000-7000-8000-00000000abcd"


def test_the_key_may_come_from_a_file(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(desk.key + "\n")
    words = ["deliveries", "list", "--key-file", str(file), "--url", desk.url]
    assert desk.run(*words, PRIMEFLOWD_API_KEY="").exit_code == 0
    missing = desk.refused("deliveries", "list", "--key-file", "nothing", PRIMEFLOWD_API_KEY="")
    assert missing == "nothing: cannot be read: No such file or directory"


def test_without_a_key(desk: Desk) -> None:
    assert "an API key is needed" in desk.refused("deliveries", "list", PRIMEFLOWD_API_KEY="")


def test_what_is_no_key_is_not_repeated(desk: Desk) -> None:
    """6.1: it may be a secret in the wrong place."""
    assert "whsec" not in desk.refused("deliveries", "list", "--key", "whsec_precious")


def test_an_error_of_the_api_is_told_with_its_code(desk: Desk) -> None:
    """2.5, 2.7: message, status, code and request id."""
    told = desk.refused("why", NO_SUCH)
    assert re.fullmatch(r"no such object \(404 not_found, request [0-9a-f-]{36}\)", told)
    unknown = desk.refused("why", NO_SUCH, "--key", "pfk_" + "a" * 40)
    assert "401 invalid_api_key" in unknown


def test_naming_the_org(desk: Desk, operator: Desk) -> None:
    """2.3: A requires it; a command names the key's own. Another org than that is refused."""
    assert desk.json("policies", "list") == desk.json("policies", "list", "--org", "acme")
    assert desk.json("policies", "set", "--plan", "named", "1s")["org_id"] == "acme"
    assert "name the org, by --org" in operator.refused("policies", "list")
    assert "name the org, by --org" in operator.refused("secrets", "list")
    assert "403 forbidden" in desk.refused("policies", "list", "--org", "globex")
    assert "--org: expected" in desk.refused("policies", "list", "--org", "a\nb")


def test_where_nobody_listens(desk: Desk) -> None:
    told = desk.refused("deliveries", "list", "--url", "http://127.0.0.1:1")
    assert told.startswith("http://127.0.0.1:1: the daemon's API cannot be reached: ")
    assert "--url: expected" in desk.refused("deliveries", "list", "--url", "127.0.0.1")


def test_the_address_is_the_configuration_s(desk: Desk, tmp_path: Path) -> None:
    """What is listened on everywhere is reached on this machine."""
    config = tmp_path / "c.toml"
    port = desk.url.rpartition(":")[2]
    words = ["deliveries", "list", "--config", str(config)]
    environment = {"PRIMEFLOWD_API_URL": ""}
    config.write_text(f'[api]\nbind = "0.0.0.0:{port}"\n')
    assert desk.run(*words, **environment).exit_code == 0
    config.write_text('[api]\nbind = "127.0.0.1:0"\n')
    assert "--url" in desk.refused(*words, **environment)


def test_of_the_configuration_only_the_address_matters(desk: Desk, tmp_path: Path) -> None:
    """8: a file that the daemon refuses to reload keeps nobody from asking it why, say."""
    config = tmp_path / "c.toml"
    port = desk.url.rpartition(":")[2]
    words = ["deliveries", "list", "--config", str(config)]
    environment = {"PRIMEFLOWD_API_URL": ""}
    config.write_text(f'bogus = 1\n[api]\nbind = "127.0.0.1:{port}"\nmax_body = "no"\n')
    assert desk.run(*words, **environment).exit_code == 0
    for text, reason in (
        ("[api", "not TOML"),
        ("api = 1\n", "api: expected a table"),
        ("[api]\nbind = 1\n", "api.bind: expected text in quotes"),
        ("[api]\nbind = 'here'\n", 'api.bind: expected "host:port"'),
    ):
        config.write_text(text)
        told = desk.refused(*words, **environment)
        assert told.startswith(f"{config}: {reason}")
        assert told.endswith("; no daemon was asked: --url names it without a file")


def test_exit_codes(desk: Desk, primeflowd: Run) -> None:
    """0; 1 and one line; 2 for a command line that is not understood."""
    environment = {"PRIMEFLOWD_API_URL": desk.url, "PRIMEFLOWD_API_KEY": desk.key}
    assert primeflowd("deliveries", "list", env=environment).returncode == 0
    done = primeflowd("why", NO_SUCH, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"primeflowd: error: .+\n", done.stderr)
    assert primeflowd("why", env=environment).returncode == 2
