"""`destinations`: what holds for a host, from the command line to a running daemon."""

from pathlib import Path

from tests.cli.api_commands import Desk

NAME = "https://cli.example"


def limits(shown: str) -> dict[str, str]:
    """The limits of a policy as people are shown them."""
    rows = (line.split() for line in shown.splitlines())
    names = ("rate", "burst", "concurrency", "timeout")
    return {row[0]: row[1] for row in rows if row[0] in names}


def test_what_is_not_set_is_a_dash(operator: Desk) -> None:
    """Not the API's 0, which reads as if nothing might be sent."""
    other = "https://unset.example"
    told = operator.told("destinations", "disable", other, "--reason", "moves")
    assert limits(told) == dict.fromkeys(("rate", "burst", "concurrency", "timeout"), "-")
    assert "0.0" not in told
    assert "0s" not in told
    assert limits(operator.told("destinations", "set", other, "--burst", "3"))["burst"] == "3"
    operator.told("destinations", "forget", other)


def test_set_show_disable_enable_forget(operator: Desk, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    words = ("destinations", "set", NAME, "--rate", "5", "--burst", "2", "--timeout", "3s")
    found = operator.json(*words, "--header-file", f"X-Token={secret}", "--disable-when-gone")
    assert (found["rate"], found["burst"], found["timeout"]) == (5, 2, "3s")
    assert (found["headers"], found["disable_when_gone"]) == (["X-Token"], True)
    assert operator.json("destinations", "set", NAME, "--timeout", "-")["timeout"] == "0s"
    shown = limits(operator.told("destinations", "show", NAME))
    assert shown == {"rate": "5/s", "burst": "2", "concurrency": "-", "timeout": "-"}
    disabled = operator.told(
        "destinations", "disable", NAME, "--reason", "moves", "--while-disabled", "fail"
    )
    assert "disabled because" in disabled
    found = operator.json("destinations", "show", NAME)
    assert (found["disabled_reason"], found["while_disabled"]) == ("moves", "fail")
    listed = operator.told("destinations", "list")
    assert "https://cli.example:443" in listed
    assert "disabled" in listed
    assert "5/s" in listed
    assert "enabled" in operator.told("destinations", "enable", NAME)
    found = operator.json(
        "destinations", "set", NAME, "--header-file", "X-Token=", "--keep-when-gone"
    )
    assert (found["headers"], found["disable_when_gone"]) == ([], False)
    assert "no policy" in operator.told("destinations", "forget", NAME)
    for word in ("show", "forget"):
        refused = operator.refused("destinations", word, NAME)
        assert refused.startswith(f"{NAME}:443 has no policy (404 not_found, ")
    assert operator.json("destinations", "list") == []


def test_refusals(operator: Desk, tmp_path: Path) -> None:
    assert "nothing to set" in operator.refused("destinations", "set", NAME)
    words = ("destinations", "set", NAME, "--header-file")
    assert "NAME=FILE" in operator.refused(*words, "X-Token")
    assert "cannot be read" in operator.refused(*words, f"X-Token={tmp_path / 'none'}")
    assert "400 invalid_timeout" in operator.refused(
        "destinations", "set", NAME, "--timeout", "soon"
    )
    assert "400 invalid_destination" in operator.refused("destinations", "show", "cli.example")
