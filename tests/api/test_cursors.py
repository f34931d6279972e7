"""Pages: limits, cursors, and how a page is put together (contract 2.9)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.api import cursors
from primeflowd.hookspecs import Page
from tests.api.harness import Api, problem

ID = "01920000-0000-7000-8000-00000000abcd"
LISTS = ["/v1/batches", "/v1/deliveries", "/v1/callback-secrets", "/v1/keys"]


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    "limit", ["", "0", "501", "-1", "+5", "5.0", "1e2", "ten", "%D9%A1", "0x10", "5_0", "00005"]
)
async def test_limits_that_are_none(api: Api, path: str, limit: str) -> None:
    """2.9: 1 to 500."""
    response = await api.get(f"{path}?limit={limit}")
    assert problem(response) == (400, "invalid_request", "invalid_limit")


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("limit", ["1", "500"])
async def test_limits(api: Api, path: str, limit: str) -> None:
    """2.9."""
    assert (await api.get(f"{path}?limit={limit}")).status_code == 200


async def test_the_default_limit_is_50(api: Api) -> None:
    """2.9."""
    await api.made("/v1/batches/bulk", {"batches": [{}] * 51}, 200)
    page = (await api.get("/v1/batches")).json()
    assert len(page["items"]) == 50
    assert len((await api.get(f"/v1/batches?cursor={page['next']}")).json()["items"]) == 1


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "!!!!",
        "AAAA",
        "%ff",
        "MTIz",
        cursors.encode(1, "x"),
        cursors.encode(1, "01920000-0000-7000-8000-00000000ABCD"),
        cursors.encode(-1, ID),
        cursors.encode(2**63, ID),
        cursors.encode(10**30, ID),
    ],
)
async def test_cursors_that_are_none(api: Api, path: str, cursor: str) -> None:
    """2.9: 400 `invalid_cursor`, whatever was made of it."""
    response = await api.get(f"{path}?cursor={cursor}")
    assert problem(response)[0] == 400
    assert cursor == "%ff" or response.json()["code"] == "invalid_cursor"


@pytest.mark.parametrize("cursor", ["", "x", "LTE", cursors.encode(1, ID)])
async def test_cursors_of_items(api: Api, cursor: str) -> None:
    """2.9: those of another list are none here."""
    batch = await api.made("/v1/batches", {"items_total": 3})
    response = await api.get(f"/v1/batches/{batch['id']}/items?cursor={cursor}")
    assert problem(response) == (400, "invalid_request", "invalid_cursor")


@given(
    rows=st.lists(st.sampled_from([0, 10, 100, 4_000_000]), max_size=200)
    | st.lists(st.integers(0, 100), min_size=60, max_size=200),
    limit=st.integers(1, cursors.MAX_LIMIT),
)
def test_pages_hold_every_row_once(rows: list[int], limit: int) -> None:
    """2.9: at most `limit` rows, at least one, and no more bytes than one row too many."""
    seen: list[int] = []
    start: int | None = None

    def fetch(count: int, after: int | None) -> list[int]:
        first = 0 if after is None else after + 1
        return list(range(len(rows)))[first : first + count]

    while True:
        page, more = cursors.gather(fetch, int, rows.__getitem__, limit, start)
        assert len(page) <= limit
        assert sum(rows[k] for k in page[:-1]) < 8 * 1024 * 1024
        seen += page
        if not more:
            break
        assert page
        start = page[-1]
    assert seen == list(range(len(rows)))


@given(count=st.integers(0, 20), limit=st.integers(1, 7))
def test_slices_hold_every_row_once(count: int, limit: int) -> None:
    """2.9: also of lists that are at hand whole."""
    rows = [(k // 3, f"{k:02}") for k in reversed(range(count))]
    seen: list[tuple[int, str]] = []
    before = None
    while True:
        page, following = cursors.slice_page(rows, lambda row: row, Page(limit, before))
        seen += page
        if following is None:
            break
        before = page[-1]
        assert following == cursors.encode(*before)
    assert seen == rows
