"""`policies`: listing, setting, and drawing a schedule (contract section 3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.cli.policies import draw
from tests.cli.api_commands import Desk


def test_set_and_list(desk: Desk) -> None:
    """3.2, 3.3: delays as they were written."""
    words = ("policies", "set", "1m", "1h30m", "--plan", "cli", "--org", "acme")
    drawn = desk.told(*words, "--max-retries", "3")
    assert len(drawn.splitlines()) == 4
    found = desk.json("policies", "list", "--org", "acme")
    [policy] = [each for each in found if each["plan_id"] == "cli"]
    assert (policy["delays"], policy["max_retries"]) == (["1m", "1h30m"], 3)
    assert desk.json(*words)["max_retries"] == 2
    assert "1m 1h30m" in desk.told("policies", "list", "--org", "acme")
    assert "400 invalid_delay" in desk.refused("policies", "set", "1w", "--org", "acme")


def test_preview_asks_no_daemon(desk: Desk) -> None:
    """3.6: each from the end of the one before."""
    words = ("policies", "preview", "15m", "1h", "--max-retries", "3", "--help")
    assert desk.run(*words, PRIMEFLOWD_API_URL="").exit_code == 0
    lines = desk.told(*words[:-1]).splitlines()
    assert [line.rstrip("·●").split() for line in lines] == [
        ["attempt", "1", "at", "once", "at", "0s"],
        ["attempt", "2", "after", "15m", "at", "15m"],
        ["attempt", "3", "after", "1h", "at", "1h", "15m"],
        ["attempt", "4", "after", "1h", "at", "2h", "15m"],
    ]
    assert "not a duration: '1w'" in desk.refused("policies", "preview", "1w")
    assert desk.run("policies", "preview").exit_code == 2


@given(
    st.lists(st.sampled_from(["1ms", "2s", "15m", "30d"]), min_size=1, max_size=9).map(tuple),
    st.integers(0, 100),
)
def test_drawn_to_scale(delays: tuple[str, ...], retries: int) -> None:
    """A line for each attempt, none past the margin, each at or right of the one before."""
    lines = draw(delays, retries).splitlines()
    assert len(lines) == retries + 1
    assert max(map(len, lines)) <= 110
    ends = [len(line) for line in lines]
    assert ends == sorted(ends)


@pytest.mark.parametrize("delays", [(), ("1h",)])
def test_no_retry(delays: tuple[str, ...]) -> None:
    """3.3: one attempt."""
    assert draw(delays, 0).split()[:4] == ["attempt", "1", "at", "once"]
