"""Claims that nobody knows of are found and given back."""

import pytest
import trio
from trio.testing import MockClock

from primeflowd.errors import StorageUnavailable
from tests.sending import NODE, open_line


async def test_claims_that_a_failed_commit_made_after_all_are_given_back(
    autojump_clock: MockClock,
) -> None:
    """The connection was lost during the commit: nobody was told, and it happened all the same."""
    async with open_line() as line, trio.open_nursery() as nursery:
        line.start(nursery)
        await trio.sleep(1)
        stray = await line.add(count=3, claimed_by=NODE)
        await trio.sleep(60)
        assert line.wire.sent == []
        line.storage.fail_with = StorageUnavailable("gone")
        with pytest.raises(StorageUnavailable):
            await line.submit()
        line.storage.fail_with = None
        await trio.sleep(3)
        assert len(line.wire.sent) == 3
        late = await line.add(count=2, claimed_by=NODE)  # the server was slow to commit it
        await trio.sleep(25)
        for one in (*stray, *late):
            assert (await line.delivery(one)).status == "succeeded"
        await line.check_claims()
        nursery.cancel_scope.cancel()
