"""Contract 6.1, 2.6: secrets are encrypted at rest under a master key that the operator holds."""

import base64
import os
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd import keyring
from primeflowd.config import Config, Secrets, from_mapping
from primeflowd.errors import MasterKeyError
from primeflowd.hookspecs import Storage, Tx
from primeflowd.keyring import Keyring, bound_to_answer, bound_to_destination, bound_to_secret
from primeflowd.model import SigningSecret, StoredAnswer
from primeflowd.plugins import Plugins
from primeflowd.testing.factories import make_destination_policy

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
TEXT = base64.b64encode(KEY).decode()
RING, OTHER_RING = Keyring(KEY), Keyring(OTHER_KEY)
HEAD = 5  # version and id of the key


@pytest.fixture(autouse=True)
def no_master_key_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (keyring.ENVIRONMENT, "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return Config(state_directory=str(tmp_path / "state"))


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    config = from_mapping({"storage": {"url": "memory://"}})
    async with Plugins(config).open_storage(config, "node") as opened:
        yield opened


def named(settings: Config, path: Path) -> Config:
    return msgspec.structs.replace(settings, secrets=Secrets(master_key_file=str(path)))


# Sealing and opening


@given(st.binary(max_size=200), st.text(st.characters(codec="utf-8"), max_size=50))
def test_6_1_what_is_sealed_opens(plain: bytes, bound_to: str) -> None:
    sealed = RING.seal(plain, bound_to)
    assert RING.open(sealed, bound_to) == plain
    assert Keyring(KEY).open(sealed, bound_to) == plain
    assert len(plain) < 4 or plain not in sealed
    assert RING.seal(plain, bound_to) != sealed


@given(st.data(), st.binary(max_size=40))
def test_6_1_a_changed_bit_anywhere_does_not_open(data: st.DataObject, plain: bytes) -> None:
    sealed = bytearray(RING.seal(plain, "row"))
    position = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[position // 8] ^= 1 << position % 8
    with pytest.raises(MasterKeyError):
        RING.open(bytes(sealed), "row")


@given(st.binary(max_size=80))
def test_6_1_what_was_never_sealed_does_not_open(garbage: bytes) -> None:
    with pytest.raises(MasterKeyError):
        RING.open(garbage, "row")


@given(st.integers(0, 60))
def test_6_1_a_truncated_value_does_not_open(length: int) -> None:
    sealed = RING.seal(bytes(40), "row")
    with pytest.raises(MasterKeyError):
        RING.open(sealed[:length], "row")


def test_6_1_a_value_copied_into_another_row_does_not_open() -> None:
    sealed = RING.seal(b"plain", bound_to_secret("acme", "one"))
    with pytest.raises(MasterKeyError, match="moved from another row"):
        RING.open(sealed, bound_to_secret("globex", "one"))


def test_6_1_another_key_is_named_by_its_id_only() -> None:
    with pytest.raises(MasterKeyError) as caught:
        OTHER_RING.open(RING.seal(b"plain", "row"), "row")
    assert RING.id in str(caught.value)
    assert OTHER_RING.id in str(caught.value)
    assert RING.id != OTHER_RING.id
    assert len(RING.id) == 8
    assert RING.id not in KEY.hex()
    assert repr(RING) == f"Keyring(id={RING.id})"


def test_bindings_name_the_row() -> None:
    assert bound_to_secret("acme", "one") == "secret:acme:one"
    assert bound_to_answer("acme", "POST", "/v1/x", "k") == "answer:acme:POST:/v1/x:k"


def test_threads_may_share_a_keyring() -> None:
    """Storage opens in its own thread what the Trio thread seals at the same time."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(500):
                assert RING.open(RING.seal(b"plain", "row"), "row") == b"plain"
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# Where the key comes from


@pytest.mark.parametrize(
    "text",
    [TEXT, TEXT + "\n", f"  {TEXT}\r\n", TEXT.rstrip("="), KEY.hex(), KEY.hex().upper()],
)
def test_6_1_spellings_of_the_master_key(text: str) -> None:
    assert keyring.parse(text, "here").id == RING.id


def test_6_1_both_alphabets_of_base64_spell_the_same_key() -> None:
    key = b"\xfb\xff" * 16
    assert "+" in base64.b64encode(key).decode()
    expected = Keyring(key).id
    assert keyring.parse(base64.b64encode(key).decode(), "here").id == expected
    assert keyring.parse(base64.urlsafe_b64encode(key).decode(), "here").id == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "changeme-changeme",
        base64.b64encode(bytes(31)).decode(),
        base64.b64encode(bytes(33)).decode(),
        KEY.hex()[:-2],
        TEXT[:20] + " " + TEXT[20:],
        TEXT[:20] + "\n" + TEXT[20:],
        TEXT[:-2] + "!=",
        TEXT + TEXT,
    ],
)
def test_6_1_what_is_no_key_is_refused_and_not_repeated(
    settings: Config, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(MasterKeyError) as caught:
        keyring.load(named(settings, path))
    assert str(path) in str(caught.value)
    assert "base64 of 32" in str(caught.value)
    assert len(text) < 8 or text[:8] not in str(caught.value)


def test_6_1_a_binary_key_file_is_refused_and_not_repeated(
    settings: Config, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_bytes(bytes(range(200, 232)))
    with pytest.raises(MasterKeyError, match="base64 of 32") as caught:
        keyring.load(named(settings, path))
    assert caught.value.__cause__ is None


def test_6_1_a_named_file_that_is_missing_is_not_made(settings: Config, tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(MasterKeyError, match="no such file"):
        keyring.load_or_create(named(settings, path))
    assert not path.exists()
    assert not settings.state_path.exists()


def test_6_1_a_file_that_cannot_be_read_is_named(settings: Config, tmp_path: Path) -> None:
    with pytest.raises(MasterKeyError, match=r"cannot be read: Is a directory") as caught:
        keyring.load(named(settings, tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_6_1_the_first_place_that_has_a_key_counts(
    settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6.1: configured file, environment, systemd credential, state directory."""
    keys = {place: bytes([number]) * 32 for number, place in enumerate("fecs")}
    ids = {place: Keyring(key).id for place, key in keys.items()}
    text = {place: base64.b64encode(key).decode() for place, key in keys.items()}

    settings.state_path.mkdir()
    (settings.state_path / "master.key").write_text(text["s"])
    assert keyring.load(settings).id == ids["s"]

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert keyring.load(settings).id == ids["s"], "a unit may have other credentials"
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "master_key").write_text(text["c"])
    assert keyring.load(settings).id == ids["c"]

    monkeypatch.setenv(keyring.ENVIRONMENT, text["e"])
    assert keyring.load(settings).id == ids["e"]

    (tmp_path / "file").write_text(text["f"])
    found, created = keyring.load_or_create(named(settings, tmp_path / "file"))
    assert (found.id, created) == (ids["f"], None)


def test_6_1_an_empty_variable_is_a_mistake_not_a_wish_for_a_new_key(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(keyring.ENVIRONMENT, "")
    with pytest.raises(MasterKeyError, match=r"\$PRIMEFLOWD_MASTER_KEY"):
        keyring.load_or_create(settings)
    assert not settings.state_path.exists()


def test_6_1_without_any_key_load_makes_none(settings: Config) -> None:
    with pytest.raises(MasterKeyError, match=r"no master key: set .*master\.key"):
        keyring.load(settings)
    assert not settings.state_path.exists()


def test_6_1_a_key_is_made_once_and_is_the_operators_alone(settings: Config) -> None:
    first, created = keyring.load_or_create(settings)
    assert created == settings.state_path / "master.key"
    assert stat.S_IMODE(created.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.state_path.stat().st_mode) == 0o700
    assert list(settings.state_path.iterdir()) == [created]
    again, nothing = keyring.load_or_create(settings)
    assert (again.id, nothing) == (first.id, None)
    assert keyring.load(settings).id == first.id


def test_6_1_two_storages_do_not_get_the_same_key(tmp_path: Path) -> None:
    rings = [keyring.load_or_create(Config(state_directory=str(tmp_path / d)))[0] for d in "ab"]
    assert rings[0].id != rings[1].id


def test_6_1_processes_that_start_together_agree_on_one_key(settings: Config) -> None:
    barrier = threading.Barrier(8)
    found: list[tuple[str, Path | None]] = []

    def start() -> None:
        barrier.wait()
        ring, created = keyring.load_or_create(settings)
        found.append((ring.id, created))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({ring_id for ring_id, _ in found}) == 1
    assert sum(created is not None for _, created in found) == 1
    assert [path.name for path in settings.state_path.iterdir()] == ["master.key"]


def test_6_1_a_dangling_link_is_no_place_for_a_new_key(settings: Config) -> None:
    """The link's target, on a disk that is not mounted, say, is the key of this storage."""
    settings.state_path.mkdir()
    (settings.state_path / "master.key").symlink_to("/nonexistent/master.key")
    with pytest.raises(MasterKeyError, match="no such file"):
        keyring.load_or_create(settings)
    assert len(list(settings.state_path.iterdir())) == 1


def test_6_1_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MasterKeyError, match="Not a directory"):
        keyring.load_or_create(Config(state_directory=str(tmp_path / "file" / "state")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_6_1_a_state_directory_that_is_not_writable_is_named(settings: Config) -> None:
    settings.state_path.mkdir(mode=0o500)
    with pytest.raises(MasterKeyError, match="cannot be made: Permission denied"):
        keyring.load_or_create(settings)


# The key and the storage


async def test_6_1_a_storage_takes_the_first_key_and_no_other(storage: Storage) -> None:
    await storage.write(lambda tx: keyring.check(RING, tx))
    note = await storage.read(lambda tx: tx.note("master_key_check"))
    await storage.write(lambda tx: keyring.check(Keyring(KEY), tx))
    with pytest.raises(MasterKeyError, match="written with another master key") as caught:
        await storage.write(lambda tx: keyring.check(OTHER_RING, tx))
    assert RING.id in str(caught.value)
    assert OTHER_RING.id in str(caught.value)
    assert await storage.read(lambda tx: tx.note("master_key_check")) == note


@pytest.mark.parametrize(
    "note",
    ["", "zz", "01", RING.seal(b"primeflowd", "elsewhere").hex()],
    ids=["empty", "no hex", "too short", "bound to something else"],
)
async def test_6_1_a_damaged_check_stops_the_start(storage: Storage, note: str) -> None:
    await storage.write(lambda tx: tx.put_note("master_key_check", note))
    with pytest.raises(MasterKeyError, match="damaged"):
        await storage.write(lambda tx: keyring.check(RING, tx))


def secret(org_id: str, secret_id: str, plain: bytes) -> SigningSecret:
    return SigningSecret(
        id=secret_id,
        org_id=org_id,
        key_prefix="whsec_AAAA",
        sealed=RING.seal(plain, bound_to_secret(org_id, secret_id)),
        is_current=secret_id == "s1",
        label=None,
        disabled_at=None if secret_id == "s1" else 5,
        last_used_at=None,
        created_at=1,
        updated_at=1,
    )


def answer(key: str, body: bytes, *, sealed: bool) -> StoredAnswer:
    bound_to = bound_to_answer("acme", "POST", "/v1/callback-secrets", key)
    return StoredAnswer(
        org_id="acme",
        method="POST",
        path="/v1/callback-secrets",
        key=key,
        body_digest="00",
        status=201,
        body=RING.seal(body, bound_to) if sealed else body,
        sealed=sealed,
        created_at=1,
    )


async def test_6_1_rotation_moves_everything_to_the_new_key(storage: Storage) -> None:
    """6.1: secrets of every org, disabled ones too, sealed answers (2.6), and the check."""
    secrets = [secret("acme", "s1", b"one"), secret("acme", "s2", b"two")]
    secrets.append(secret("globex", "s3", b"three"))
    answers = [answer("k1", b"sealed", sealed=True), answer("k2", b"open", sealed=False)]
    bound_to = bound_to_destination("https://a:443")
    policies = [
        make_destination_policy(
            destination="https://a:443", sealed_headers=RING.seal(b"{}", bound_to)
        ),
        make_destination_policy(destination="https://b:443"),
    ]

    def fill(tx: Tx) -> None:
        keyring.check(RING, tx)
        for policy in policies:
            tx.put_destination_policy(policy)
        for row in secrets:
            tx.put_secret(row)
        for stored in answers:
            tx.put_answer(stored)

    await storage.write(fill)
    assert await storage.write(lambda tx: keyring.rotate(tx, RING, OTHER_RING)) == 5

    first, second = await storage.read(lambda tx: tx.destination_policies())
    assert first.sealed_headers is not None
    assert OTHER_RING.open(first.sealed_headers, bound_to) == b"{}"
    assert second == policies[1]
    await storage.write(lambda tx: keyring.check(OTHER_RING, tx))
    rows = {row.id: row for row in await storage.read(lambda tx: tx.secrets(None))}
    for before, plain in zip(secrets, (b"one", b"two", b"three"), strict=True):
        after = rows[before.id]
        bound_to = bound_to_secret(after.org_id, after.id)
        assert OTHER_RING.open(after.sealed, bound_to) == plain
        assert msgspec.structs.replace(after, sealed=before.sealed) == before
    [resealed] = await storage.read(lambda tx: tx.sealed_answers())
    bound_to = bound_to_answer("acme", "POST", "/v1/callback-secrets", "k1")
    assert OTHER_RING.open(resealed.body, bound_to) == b"sealed"
    untouched = await storage.read(
        lambda tx: tx.answer("acme", "POST", "/v1/callback-secrets", "k2")
    )
    assert untouched == answers[1]


async def test_6_1_a_rotation_that_fails_changes_nothing(storage: Storage) -> None:
    good, bad = secret("acme", "s1", b"one"), secret("acme", "s2", b"two")
    bad = msgspec.structs.replace(bad, sealed=good.sealed)
    await storage.write(lambda tx: keyring.check(RING, tx))
    await storage.write(lambda tx: tx.put_secret(good))
    await storage.write(lambda tx: tx.put_secret(bad))
    with pytest.raises(MasterKeyError):
        await storage.write(lambda tx: keyring.rotate(tx, RING, OTHER_RING))
    await storage.write(lambda tx: keyring.check(RING, tx))
    assert await storage.read(lambda tx: tx.secret("acme", "s1")) == good


async def test_6_1_rotation_wants_the_key_that_the_storage_has(storage: Storage) -> None:
    await storage.write(lambda tx: keyring.check(RING, tx))
    with pytest.raises(MasterKeyError, match="written with another master key"):
        await storage.write(lambda tx: keyring.rotate(tx, OTHER_RING, RING))
