"""Contract 6.1: an org's signing secrets."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from primeflowd import plain_secret, signing_secrets
from primeflowd.config import DefaultPolicy, from_mapping
from primeflowd.errors import NotFound, StateRefused
from primeflowd.hookspecs import Storage, Tx
from primeflowd.instants import SECOND, Micros
from primeflowd.keyring import Keyring, bound_to_secret
from primeflowd.model import SigningSecret
from primeflowd.plugins import Plugins
from primeflowd.unit import Unit

T = TypeVar("T")
RING = Keyring(bytes(32))
NOW = 1_700_000_000 * SECOND


class Org:
    """The operations on one org's secrets, each in a transaction of its own."""

    def __init__(self, storage: Storage, org_id: str) -> None:
        self._storage = storage
        self.org_id = org_id
        self.now: Micros = NOW

    async def _perform(self, operation: Callable[[Unit], T]) -> T:
        self.now += SECOND

        def run(tx: Tx) -> T:
            return operation(Unit(tx, self.now, DefaultPolicy(), lambda _: None))

        return await self._storage.write(run)

    async def create(self, label: str | None = None) -> tuple[SigningSecret, str]:
        return await self._perform(
            lambda unit: signing_secrets.create_secret(unit, RING, self.org_id, label)
        )

    async def update(
        self, secret_id: str, label: str | None = None, *, is_current: bool | None = None
    ) -> SigningSecret:
        return await self._perform(
            lambda unit: signing_secrets.update_secret(
                unit,
                self.org_id,
                secret_id,
                UNSET if label is None else label,
                UNSET if is_current is None else is_current,
            )
        )

    async def unlabel(self, secret_id: str) -> SigningSecret:
        return await self._perform(
            lambda unit: signing_secrets.update_secret(unit, self.org_id, secret_id, None)
        )

    async def disable(self, secret_id: str) -> None:
        await self._perform(
            lambda unit: signing_secrets.disable_secret(unit, self.org_id, secret_id)
        )

    async def all(self) -> dict[str, SigningSecret]:
        rows = await self._storage.read(lambda tx: tx.secrets(self.org_id))
        return {row.id: row for row in rows}

    async def current(self) -> str | None:
        row = await self._storage.read(lambda tx: tx.current_secret(self.org_id))
        return row.id if row is not None else None


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    config = from_mapping({"storage": {"url": "memory://"}})
    async with Plugins(config).open_storage(config, "node") as opened:
        yield opened


@pytest.fixture
async def org(storage: Storage) -> Org:
    return Org(storage, "acme")


async def test_6_1_a_secret_is_stored_sealed_and_shown_once(org: Org) -> None:
    secret, plain = await org.create("first")
    assert len(plain_secret.key_bytes(plain)) == 32
    assert secret == SigningSecret(
        id=secret.id,
        org_id="acme",
        key_prefix=plain[:10],
        sealed=secret.sealed,
        is_current=True,
        label="first",
        disabled_at=None,
        last_used_at=None,
        created_at=org.now,
        updated_at=org.now,
    )
    assert await org.all() == {secret.id: secret}
    assert plain.encode() not in secret.sealed
    assert RING.open(secret.sealed, bound_to_secret("acme", secret.id)).decode() == plain
    assert signing_secrets.plain_text(RING, secret) == plain


async def test_6_1_the_first_is_current_at_once_and_later_ones_when_promoted(org: Org) -> None:
    first, _ = await org.create()
    second, _ = await org.create()
    assert (first.is_current, second.is_current) == (True, False)
    promoted = await org.update(second.id, is_current=True)
    stored = await org.all()
    assert promoted.is_current
    assert promoted.updated_at == org.now
    assert stored[second.id] == promoted
    assert not stored[first.id].is_current
    assert stored[first.id].updated_at == org.now
    assert await org.current() == second.id


async def test_6_1_orgs_have_secrets_of_their_own(storage: Storage) -> None:
    acme, globex = Org(storage, "acme"), Org(storage, "globex")
    ours, _ = await acme.create()
    theirs, _ = await globex.create()
    assert ours.is_current
    assert theirs.is_current
    for operation in (globex.update(ours.id, "stolen"), globex.disable(ours.id)):
        with pytest.raises(NotFound):
            await operation
    assert await acme.all() == {ours.id: ours}


async def test_6_1_the_label_changes_and_goes(org: Org) -> None:
    secret, _ = await org.create("old")
    relabelled = await org.update(secret.id, "new")
    assert (relabelled.label, relabelled.is_current) == ("new", True)
    assert relabelled.updated_at == org.now
    assert (await org.unlabel(secret.id)).label is None


async def test_6_1_an_update_that_changes_nothing_writes_nothing(org: Org) -> None:
    secret, _ = await org.create("same")
    assert await org.update(secret.id, "same", is_current=True) == secret
    assert await org.all() == {secret.id: secret}


async def test_6_1_the_current_one_does_not_step_down_by_itself(org: Org) -> None:
    secret, _ = await org.create("old")
    with pytest.raises(StateRefused) as caught:
        await org.update(secret.id, "new", is_current=False)
    assert caught.value.code == "secret_is_current"
    assert await org.all() == {secret.id: secret}, "nor is the label changed"
    other, _ = await org.create()
    assert await org.update(other.id, is_current=False) == other


async def test_6_1_a_disabled_one_cannot_be_promoted(org: Org) -> None:
    await org.create()
    second, _ = await org.create("old")
    await org.disable(second.id)
    before = await org.all()
    with pytest.raises(StateRefused) as caught:
        await org.update(second.id, "new", is_current=True)
    assert caught.value.code == "invalid_state"
    assert await org.all() == before
    assert (await org.update(second.id, "out of use")).label == "out of use"


async def test_6_1_the_current_one_is_not_disabled_while_another_is_enabled(org: Org) -> None:
    first, _ = await org.create()
    second, _ = await org.create()
    with pytest.raises(StateRefused) as caught:
        await org.disable(first.id)
    assert caught.value.code == "secret_is_current"
    assert await org.all() == {first.id: first, second.id: second}
    await org.disable(second.id)
    stored = await org.all()
    assert stored[second.id].disabled_at == org.now
    assert await org.current() == first.id


async def test_6_1_the_last_enabled_one_may_go_and_the_next_is_current(org: Org) -> None:
    first, _ = await org.create()
    await org.disable(first.id)
    assert await org.current() is None
    assert not (await org.all())[first.id].is_current
    second, _ = await org.create()
    assert second.is_current


async def test_6_1_disabling_again_changes_nothing(org: Org) -> None:
    secret, _ = await org.create()
    await org.disable(secret.id)
    before = await org.all()
    await org.disable(secret.id)
    assert await org.all() == before


async def test_enabled_secrets_are_limited_because_each_lengthens_a_header(org: Org) -> None:
    made = [(await org.create())[0] for _ in range(signing_secrets.MAX_ENABLED)]
    with pytest.raises(StateRefused) as caught:
        await org.create()
    assert caught.value.code == "too_many_secrets"
    assert len(await org.all()) == signing_secrets.MAX_ENABLED
    await org.disable(made[-1].id)
    await org.create()


async def test_6_2_the_public_key_is_that_of_the_plain_secret(org: Org) -> None:
    secret, plain = await org.create()
    assert signing_secrets.public_key(RING, secret) == plain_secret.public_key(plain)


steps = st.lists(
    st.tuples(st.sampled_from(["create", "promote", "demote", "disable"]), st.integers(0, 5)),
    max_size=25,
)


@given(steps)
def test_6_1_whatever_is_done_an_org_with_enabled_secrets_has_one_current(
    done: list[tuple[str, int]],
) -> None:
    """6.1: exactly one is current, and it is an enabled one; none where none is enabled."""

    async def play() -> None:
        config = from_mapping({"storage": {"url": "memory://"}})
        async with Plugins(config).open_storage(config, "node") as storage:
            org = Org(storage, "acme")
            for action, number in done:
                ids = sorted(await org.all())
                with contextlib.suppress(StateRefused):
                    if action == "create":
                        await org.create()
                    elif number < len(ids) and action == "disable":
                        await org.disable(ids[number])
                    elif number < len(ids):
                        await org.update(ids[number], is_current=action == "promote")
                rows = (await org.all()).values()
                current = [row for row in rows if row.is_current]
                enabled = [row for row in rows if row.disabled_at is None]
                assert len(current) == (1 if enabled else 0)
                assert all(row.disabled_at is None for row in current)

    trio.run(play)
