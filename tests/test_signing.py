"""Contract 6.2, 6.3: which secret signs an attempt, and what headers come of it."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TypeVar

import msgspec
import outcome
import pytest
import trio
import trio.testing
from standardwebhooks import Webhook
from trio.testing import MockClock

from primeflowd import plain_secret
from primeflowd.clock import SystemClock, TrioClock
from primeflowd.config import from_mapping
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Signer, SigningRequest, Storage, StorageStatistics, Tx
from primeflowd.instants import SECOND, Micros
from primeflowd.keyring import Keyring, bound_to_secret
from primeflowd.model import Delivery, SigningSecret
from primeflowd.plugins import Plugins
from primeflowd.signed_headers import SigningFailed
from primeflowd.signing import Signatures
from primeflowd.testing.factories import make_delivery
from tests.network import pairs

T = TypeVar("T")
RING = Keyring(bytes(32))
BODY = b'{"event":"batch.succeeded"}'


class Watched:
    """A storage that counts its reads, and fails or holds them where a test says so."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.reads = 0
        self.failing = False
        self.gate: trio.Event | None = None

    async def read(self, function: Callable[[Tx], T]) -> T:
        self.reads += 1
        result = await self._storage.read(function)
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise StorageUnavailable("the disk is gone")
        return result

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        if self.failing:
            raise StorageUnavailable("the disk is gone")
        return await self._storage.write(function, on_commit)

    def submit(
        self,
        function: Callable[[Tx], T],
        on_commit: Callable[[T], None],
        on_end: Callable[[outcome.Maybe[T]], None],
    ) -> None:
        if self.failing:
            raise StorageUnavailable("the disk is gone")
        self._storage.submit(function, on_commit, on_end)

    async def wait_for_others(self) -> None:
        await self._storage.wait_for_others()

    def statistics(self) -> StorageStatistics:
        return self._storage.statistics()


class Plain:
    """A signer that shows what it was given; never one for use."""

    name = "plain"

    def __init__(self) -> None:
        self.requests: list[SigningRequest] = []

    def sign(self, request: SigningRequest) -> Iterable[tuple[str, str]]:
        self.requests.append(request)
        return [("X-Secrets", " ".join(request.secrets))]


class Saying:
    """A signer that gives these headers, whatever they are, or raises."""

    def __init__(self, headers: object, name: str = "acme") -> None:
        self.name = name
        self._headers = headers

    def sign(self, request: SigningRequest) -> Iterable[tuple[str, str]]:
        if isinstance(self._headers, Exception):
            raise self._headers
        return self._headers  # type: ignore[return-value]  # a plugin may break the contract


class Stumbling:
    """What raises when it is looked into."""

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("hunter2")


def delivery(pinned: str | None = None, org_id: str = "acme") -> Delivery:
    return make_delivery(
        id="01920000-0000-7000-8000-00000000d001",
        batch_id="01920000-0000-7000-8000-00000000abcd",
        org_id=org_id,
        signing_secret_id=pinned,
    )


def secret(
    secret_id: str,
    plain: str | None = None,
    *,
    org_id: str = "acme",
    is_current: bool = False,
    disabled_at: Micros | None = None,
    created_at: Micros = 1,
) -> SigningSecret:
    plain = plain if plain is not None else f"plain of {secret_id}"
    return SigningSecret(
        id=secret_id,
        org_id=org_id,
        key_prefix="whsec_AAAA",
        sealed=RING.seal(plain.encode(), bound_to_secret(org_id, secret_id)),
        is_current=is_current,
        label=None,
        disabled_at=disabled_at,
        last_used_at=None,
        created_at=created_at,
        updated_at=created_at,
    )


@pytest.fixture
async def storage() -> AsyncIterator[Watched]:
    config = from_mapping({"storage": {"url": "memory://"}})
    async with Plugins(config).open_storage(config, "node") as opened:
        yield Watched(opened)


async def put(storage: Storage, *secrets: SigningSecret) -> None:
    def write(tx: Tx) -> None:
        for each in secrets:
            tx.put_secret(each)

    await storage.write(write)


def signatures(storage: Storage, *signers: Signer, max_orgs: int = 10) -> Signatures:
    return Signatures(storage, RING, signers, TrioClock(), max_orgs=max_orgs)


def built_in(*names: str) -> tuple[Signer, ...]:
    config = from_mapping({"signing": {"signers": list(names)}})
    return Plugins(config).signers(config)


# Which secret


async def test_6_3_an_org_without_a_secret_sends_unsigned(storage: Watched) -> None:
    signed = await signatures(storage, Plain()).sign(delivery(), "a", BODY)
    assert (pairs(signed.lines), signed.secret_id) == ((), None)


async def test_6_3_an_org_whose_secrets_are_all_disabled_sends_unsigned(storage: Watched) -> None:
    await put(storage, secret("s1", disabled_at=5))
    signed = await signatures(storage, Plain()).sign(delivery("s1"), "a", BODY)
    assert (pairs(signed.lines), signed.secret_id) == ((), None)


@pytest.mark.parametrize(
    ("pinned", "order"),
    [
        ("current", "current newer older"),
        ("older", "older current newer"),
        ("newer", "newer current older"),
        ("disabled", "current newer older"),
        ("gone", "current newer older"),
        (None, "current newer older"),
    ],
)
async def test_6_3_the_pinned_one_first_else_the_current_one(
    storage: Watched, pinned: str | None, order: str
) -> None:
    """6.3: recorded is the one that came first. 6.2: one signature per enabled secret."""
    await put(
        storage,
        secret("older", "older", created_at=1),
        secret("current", "current", created_at=2, is_current=True),
        secret("newer", "newer", created_at=3),
        secret("disabled", "disabled", created_at=4, disabled_at=5),
        secret("theirs", "theirs", org_id="globex", is_current=True),
    )
    signed = await signatures(storage, Plain()).sign(delivery(pinned), "a", BODY)
    assert pairs(signed.lines) == (("X-Secrets", order),)
    assert signed.secret_id == order.split()[0]


async def test_6_2_what_a_signer_is_given(storage: Watched, mock_clock: MockClock) -> None:
    await put(storage, secret("s1", is_current=True))
    plain = Plain()
    signing = Signatures(storage, RING, [plain], TrioClock(1_700_000_000 * SECOND + 999_999))
    await signing.sign(delivery("s1"), "the attempt", BODY)
    assert plain.requests == [
        SigningRequest(
            batch_id="01920000-0000-7000-8000-00000000abcd",
            delivery_id="01920000-0000-7000-8000-00000000d001",
            attempt_id="the attempt",
            timestamp=1_700_000_000,
            body=BODY,
            secrets=("plain of s1",),
            url=delivery("s1").callback_url,
        )
    ]


async def test_without_signers_nothing_is_signed_or_read(storage: Watched) -> None:
    await put(storage, secret("s1", is_current=True))
    signed = await signatures(storage).sign(delivery("s1"), "a", BODY)
    assert (pairs(signed.lines), signed.secret_id) == ((), None)
    assert storage.reads == 0


# Headers


async def test_6_2_all_built_in_signers_at_once(storage: Watched) -> None:
    """6.2: the two kinds of Standard Webhooks share one header; id and timestamp stand once."""
    old, new = plain_secret.generate(), plain_secret.generate()
    await put(storage, secret("old", old), secret("new", new, is_current=True))
    signers = built_in("standard-webhooks", "hmac-sha256", "ed25519")
    signed = await Signatures(storage, RING, signers, SystemClock()).sign(
        delivery("old"), "a", BODY
    )
    assert [name for name, _ in pairs(signed.lines)] == [
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "Primeflow-Signature",
    ]
    headers = dict(pairs(signed.lines))
    kinds = [text.split(",")[0] for text in headers["webhook-signature"].split(" ")]
    assert kinds == ["v1", "v1", "v1a", "v1a"]
    for plain in (old, new):
        Webhook(plain).verify(BODY, headers)


async def test_headers_of_different_signers_stand_side_by_side(storage: Watched) -> None:
    await put(storage, secret("s1", is_current=True))
    signing = signatures(
        storage,
        Saying([("X-One", "1"), ("X-Same", "s")]),
        Saying([("x-same", "s"), ("X-Empty", ""), ("Webhook-Signature", "v9,one")]),
        Saying([("webhook-signature", "v9,two"), ("webhook-signature", "v9,three")]),
    )
    signed = await signing.sign(delivery(), "a", BODY)
    assert pairs(signed.lines) == (
        ("X-One", "1"),
        ("X-Same", "s"),
        ("X-Empty", ""),
        ("Webhook-Signature", "v9,one v9,two v9,three"),
    )


async def test_a_name_may_have_any_character_that_names_have(storage: Watched) -> None:
    await put(storage, secret("s1", is_current=True))
    name = "!#$%s&'*+.^_`|~09azAZ-"
    for signers in ([Saying([(name, "%s")])], [Saying([(name, "%s")]), Saying([(name, "%s")])]):
        signed = await signatures(storage, *signers).sign(delivery(), "a", BODY)
        assert pairs(signed.lines) == ((name, "%s"),)


async def test_signers_that_add_nothing(storage: Watched) -> None:
    """6.3: the attempt counts as signed all the same."""
    await put(storage, secret("s1", is_current=True))
    signed = await signatures(storage, Saying([]), Saying(iter(()))).sign(delivery(), "a", BODY)
    assert (signed.lines, signed.secret_id) == ("", "s1")


@pytest.mark.parametrize("beside", [Plain(), Saying([]), Saying([("X-Twice", "0")] * 2)])
@pytest.mark.parametrize(
    "headers",
    [
        RuntimeError("hunter2"),
        None,
        5,
        [("X-One",)],
        [("X-One", "1"), ("X-Two", "1", "2")],
        [("X-One", "1"), ("X-One",)],
        [("X-One", "1"), (["X-Two"], "2")],
        [("X-One", "1"), 5],
        [Stumbling()],
        ["X-One: 1"],
        [("X-One", "1", "2")],
        [("X One", "1")],
        [("X-One:", "1")],
        [("", "1")],
        [("X-Öne", "1")],
        [("X-One", "1\r\nX-Two: 2")],
        [("X-One", "1\n")],
        [("X-One", "grün")],
        [("X-One", "\t")],
        [("X-One", "\ud800")],
        [("X-One", 1)],
        [(b"X-One", "1")],
        [("X-One", None)],
        [("Content-Length", "0")],
        [("Expect", "100-continue")],
        [("HOST", "example.org")],
        [("primeflow-attempt", "9")],
        [("X-One", "1"), ("x-one", "2")],
    ],
)
async def test_6_2_a_faulty_signer_fails_the_attempt_and_is_named(
    storage: Watched, headers: object, beside: Signer
) -> None:
    """Whether all else is as it always is, or is looked at one by one anyway."""
    await put(storage, secret("s1", is_current=True))
    signing = signatures(storage, beside, Saying(headers, "globex"))
    with pytest.raises(SigningFailed, match=r"^globex: ") as caught:
        await signing.sign(delivery(), "a", BODY)
    assert caught.value.name == "globex"
    assert "hunter2" not in str(caught.value)
    assert "plain of s1" not in str(caught.value)
    await signing.flush_last_used()
    unused = await storage.read(lambda tx: tx.secret("acme", "s1"))
    assert unused is not None
    assert unused.last_used_at is None


async def test_6_2_of_many_signers_the_faulty_one_is_named(storage: Watched) -> None:
    await put(storage, secret("s1", is_current=True))
    good = Saying([("X-One", "1"), ("X-Two", "2")], "good")
    for headers in ([("X-Odd", "\n")], [("X-Odd", "3"), ("Host", "4")], [("X-Odd", 5)]):
        others = Saying([], "none"), Saying([("X-Last", "6")], "last")
        signing = signatures(storage, good, others[0], Saying(headers, "globex"), *others)
        with pytest.raises(SigningFailed, match=r"^globex: "):
            await signing.sign(delivery(), "a", BODY)


async def test_6_2_two_signers_that_want_one_header_fail_the_attempt(storage: Watched) -> None:
    await put(storage, secret("s1", is_current=True))
    signing = signatures(storage, Saying([("X-A", "1")]), Saying([("x-a", "2")], name="globex"))
    with pytest.raises(SigningFailed, match=r"^globex: .*x-a, which another signer has set"):
        await signing.sign(delivery(), "a", BODY)


async def test_6_2_where_a_signer_raised_is_told_but_not_what_it_said(storage: Watched) -> None:
    await put(storage, secret("s1", is_current=True))
    with pytest.raises(SigningFailed) as caught:
        await signatures(storage, Saying(KeyError("hunter2"))).sign(delivery(), "a", BODY)
    assert str(caught.value).startswith("acme: KeyError at test_signing.py:")
    assert caught.value.__cause__ is None, "else a logged traceback would say it"
    assert caught.value.__suppress_context__


async def test_6_1_a_damaged_secret_fails_its_orgs_attempts_only(storage: Watched) -> None:
    bad = msgspec.structs.replace(secret("s1", is_current=True), sealed=secret("s2").sealed)
    await put(storage, bad, secret("s3", org_id="globex", is_current=True))
    signing = signatures(storage, Plain())
    with pytest.raises(SigningFailed, match=r"^keyring: "):
        await signing.sign(delivery(), "a", BODY)
    assert (await signing.sign(delivery(org_id="globex"), "a", BODY)).secret_id == "s3"


# Holding secrets in memory


async def test_secrets_are_read_once_a_second_and_org(
    storage: Watched, mock_clock: MockClock
) -> None:
    await put(storage, secret("s1", is_current=True), secret("t1", org_id="globex"))
    signing = signatures(storage, Plain())
    for _ in range(5):
        await signing.sign(delivery(), "a", BODY)
        await signing.sign(delivery(org_id="globex"), "a", BODY)
    assert storage.reads == 2
    mock_clock.jump(0.6)
    await signing.sign(delivery(), "a", BODY)
    assert storage.reads == 2
    mock_clock.jump(0.4)
    await signing.sign(delivery(), "a", BODY)
    assert storage.reads == 3


async def test_one_attempt_reads_ahead_while_others_go_on(
    storage: Watched, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Else all would wait for it once a second. The end of the second holds for all."""
    await put(storage, secret("s1", is_current=True))
    signing = signatures(storage, Plain())
    await signing.sign(delivery(), "a", BODY)
    mock_clock.jump(0.8)
    assert signing.sign_now(delivery(), "a", BODY, trio.current_time(), 0) is None
    storage.gate = trio.Event()
    nursery.start_soon(signing.sign, delivery(), "a", BODY)
    await trio.testing.wait_all_tasks_blocked()
    assert signing.sign_now(delivery(), "a", BODY, trio.current_time(), 0) is not None
    mock_clock.jump(0.2)
    assert signing.sign_now(delivery(), "a", BODY, trio.current_time(), 0) is None
    storage.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert signing.sign_now(delivery(), "a", BODY, trio.current_time(), 0) is not None
    assert storage.reads == 2


async def test_an_org_without_secrets_is_remembered_too(
    storage: Watched, mock_clock: MockClock
) -> None:
    signing = signatures(storage, Plain())
    for _ in range(5):
        await signing.sign(delivery(), "a", BODY)
    assert storage.reads == 1


async def test_6_3_a_change_elsewhere_is_seen_within_a_second(
    storage: Watched, mock_clock: MockClock
) -> None:
    await put(storage, secret("s1", is_current=True))
    signing = signatures(storage, Plain())
    assert (await signing.sign(delivery("s1"), "a", BODY)).secret_id == "s1"
    await put(storage, secret("s1", disabled_at=5), secret("s2", is_current=True))
    mock_clock.jump(1.0)
    assert (await signing.sign(delivery("s1"), "a", BODY)).secret_id == "s2"


async def test_6_3_a_change_here_is_seen_at_once(storage: Watched, mock_clock: MockClock) -> None:
    await put(storage, secret("s1", is_current=True))
    signing = signatures(storage, Plain())
    assert (await signing.sign(delivery("s1"), "a", BODY)).secret_id == "s1"
    await put(storage, secret("s1", disabled_at=5), secret("s2", is_current=True))
    signing.forget("acme")
    signing.forget("nobody")
    assert (await signing.sign(delivery("s1"), "a", BODY)).secret_id == "s2"


async def test_6_3_a_read_that_began_before_a_change_is_not_held(storage: Watched) -> None:
    """The snapshot of a slow read is older than the change that forget() tells of."""
    await put(storage, secret("s1", is_current=True))
    signing = signatures(storage, Plain())
    storage.gate = slow = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(signing.sign, delivery("s1"), "a", BODY)
        await trio.testing.wait_all_tasks_blocked()
        storage.gate = None
        await put(storage, secret("s1", disabled_at=5), secret("s2", is_current=True))
        signing.forget("acme")
        assert (await signing.sign(delivery("s1"), "a", BODY)).secret_id == "s2"
        slow.set()
    assert (await signing.sign(delivery("s1"), "a", BODY)).secret_id == "s2"
    assert storage.reads == 2


async def test_the_number_of_orgs_held_is_bounded(storage: Watched, mock_clock: MockClock) -> None:
    signing = signatures(storage, Plain(), max_orgs=2)
    for org_id in ("a", "b", "a", "c"):
        await signing.sign(delivery(org_id=org_id), "x", BODY)
    assert storage.reads == 3
    await signing.sign(delivery(org_id="a"), "x", BODY)
    assert storage.reads == 3, "b made room, being the one not used for longest"
    await signing.sign(delivery(org_id="b"), "x", BODY)
    assert storage.reads == 4


async def test_senders_that_miss_together_share_one_read(storage: Watched) -> None:
    await put(storage, secret("s1", is_current=True))
    signing = signatures(storage, Plain())
    storage.gate = trio.Event()
    signed: list[str | None] = []

    async def send() -> None:
        signed.append((await signing.sign(delivery(), "a", BODY)).secret_id)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        storage.gate.set()
    assert signed == ["s1"] * 20
    assert storage.reads == 1


async def test_senders_that_miss_together_share_a_failure(storage: Watched) -> None:
    """Else, with a storage that fails slowly, the last of them would wait for all the others."""
    signing = signatures(storage, Plain())
    storage.gate, storage.failing = trio.Event(), True
    failures: list[Exception] = []

    async def send() -> None:
        with pytest.raises(StorageUnavailable, match="the disk is gone") as caught:
            await signing.sign(delivery(), "a", BODY)
        failures.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        storage.gate.set()
    assert len({id(failure) for failure in failures}) == 20
    assert storage.reads == 1
    storage.failing = False
    assert (await signing.sign(delivery(), "a", BODY)).secret_id is None


async def test_6_1_senders_that_miss_together_share_a_damaged_secret(storage: Watched) -> None:
    bad = msgspec.structs.replace(secret("s1", is_current=True), sealed=b"")
    await put(storage, bad)
    signing = signatures(storage, Plain())
    storage.gate = trio.Event()
    named: list[str] = []

    async def send() -> None:
        with pytest.raises(SigningFailed) as caught:
            await signing.sign(delivery(), "a", BODY)
        named.append(caught.value.name)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        storage.gate.set()
    assert named == ["keyring"] * 5
    assert storage.reads == 1


async def test_a_sender_cancelled_while_it_reads_leaves_the_others_served(
    storage: Watched,
) -> None:
    await put(storage, secret("s1", is_current=True))
    signing = signatures(storage, Plain())
    storage.gate = trio.Event()
    signed: list[str | None] = []

    async def send() -> None:
        signed.append((await signing.sign(delivery(), "a", BODY)).secret_id)

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def doomed() -> None:
            with scope:
                await send()

        nursery.start_soon(doomed)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        storage.gate.set()
    assert scope.cancelled_caught
    assert signed == ["s1", "s1"]
    assert storage.reads == 2


# When secrets were last used


async def last_used(storage: Storage, secret_id: str) -> Micros | None:
    row = await storage.read(lambda tx: tx.secret("acme", secret_id))
    assert row is not None
    return row.last_used_at


async def test_6_1_last_used_at_is_the_first_secrets_and_written_once_a_minute(
    storage: Watched, mock_clock: MockClock
) -> None:
    start = 1_700_000_000 * SECOND
    await put(storage, secret("s1", is_current=True), secret("s2"))
    before = await storage.read(lambda tx: tx.secret("acme", "s1"))
    signing = signatures(storage, Plain())
    await signing.sign(delivery("s1"), "a", BODY)
    assert await last_used(storage, "s1") is None
    await signing.flush_last_used()
    assert await last_used(storage, "s1") == start
    assert await last_used(storage, "s2") is None
    after = await storage.read(lambda tx: tx.secret("acme", "s1"))
    assert before is not None
    assert after == msgspec.structs.replace(before, last_used_at=start)

    mock_clock.jump(30)
    await signing.sign(delivery("s1"), "a", BODY)
    await signing.flush_last_used()
    assert await last_used(storage, "s1") == start
    mock_clock.jump(30)
    await signing.flush_last_used()
    assert await last_used(storage, "s1") == start + 30 * SECOND


async def test_6_1_what_cannot_be_written_is_kept(storage: Watched, mock_clock: MockClock) -> None:
    await put(storage, secret("s1", is_current=True))
    signing = signatures(storage, Plain())
    await signing.sign(delivery("s1"), "a", BODY)
    storage.failing = True
    with pytest.raises(StorageUnavailable):
        await signing.flush_last_used()
    storage.failing = False
    await signing.flush_last_used()
    assert await last_used(storage, "s1") == 1_700_000_000 * SECOND


async def test_6_1_a_later_use_by_another_node_stands(
    storage: Watched, mock_clock: MockClock
) -> None:
    later = 1_700_000_500 * SECOND
    await put(storage, secret("s1", is_current=True))
    signing = signatures(storage, Plain())
    await signing.sign(delivery("s1"), "a", BODY)
    theirs = msgspec.structs.replace(secret("s1", is_current=True), last_used_at=later)
    await put(storage, theirs)
    await signing.flush_last_used()
    assert await last_used(storage, "s1") == later


async def test_flushing_without_anything_used_asks_nothing_of_the_storage(
    storage: Watched,
) -> None:
    storage.failing = True
    await signatures(storage, Plain()).flush_last_used()
