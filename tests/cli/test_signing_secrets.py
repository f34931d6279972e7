"""`secrets list`, `create`, `promote` and `disable` (contract 6.1)."""

import re

from tests.cli.api_commands import Desk


def test_rotation_of_a_signing_secret(desk: Desk) -> None:
    """6.1: shown once; the first is current; the current one is not disabled while another is."""
    done = desk.run("secrets", "create", "--label", "one")
    assert re.fullmatch(r"whsec_\S+\n", done.stdout)
    assert "current" in done.stderr
    second = desk.json("secrets", "create")["id"]
    first = next(each["id"] for each in desk.json("secrets", "list") if each["label"] == "one")
    listed = desk.told("secrets", "list")
    assert done.stdout.strip() not in listed
    assert re.search(rf"{second}  whsec_\S+…  enabled", listed)
    assert "422" in desk.refused("secrets", "disable", first)
    assert desk.told("secrets", "promote", second) == f"{second} is current\n"
    assert desk.told("secrets", "disable", first) == f"disabled {first}\n"
    assert re.search(rf"{first}  whsec_\S+…  disabled", desk.told("secrets", "list"))
