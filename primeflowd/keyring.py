"""The master key: where it comes from, and what is encrypted under it in storage.

Signing secrets, and stored answers that held one, are kept as AES-256-GCM ciphertext. Each is
bound to the row it belongs to, so a ciphertext copied into another row does not open. A sealed
value is: version (1 byte), id of the key (4), nonce (12), ciphertext with tag.

A storage remembers which master key it was written with (`check`), so that a daemon given another
one stops at start instead of failing at every signature. `rotate` moves it to a new key in one
transaction.

Blocks on: reading or making the key file, at start only. Fails with MasterKeyError; no message
holds key material.
"""

import base64
import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from primeflowd.config import Config
from primeflowd.errors import MasterKeyError
from primeflowd.hookspecs import Tx

ENVIRONMENT: Final = "PRIMEFLOWD_MASTER_KEY"
CREDENTIAL: Final = "master_key"
FILE: Final = "master.key"

_LENGTH: Final = 32
_EXPECTED: Final = "expected base64 of 32 random bytes, as `head -c 32 /dev/urandom | base64` makes"
_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]{43}=?|[A-Za-z0-9_-]{43}=?")

_STANDARD: Final = str.maketrans("-_", "+/")

_VERSION: Final = b"\x01"
_ID: Final = 4
_HEAD: Final = len(_VERSION) + _ID
_NONCE: Final = 12
_TAG: Final = 16

_CHECK_NOTE: Final = "master_key_check"
_CHECK_TEXT: Final = b"primeflowd"


def bound_to_secret(org_id: str, secret_id: str) -> str:
    """What the ciphertext of a signing secret is bound to."""
    return f"secret:{org_id}:{secret_id}"


def bound_to_answer(org_id: str, method: str, path: str, key: str) -> str:
    """What the ciphertext of a stored answer is bound to."""
    return f"answer:{org_id}:{method}:{path}:{key}"


def bound_to_destination(destination: str) -> str:
    """What the ciphertext of a destination's headers is bound to."""
    return f"destination:{destination}"


class Keyring:
    """Seals and opens under one master key. May be used by several threads at once.

    Attributes:
        id: eight hex digits that tell master keys apart and give nothing of them away.
    """

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != _LENGTH:
            raise MasterKeyError(f"a master key has {_LENGTH} bytes, not {len(master_key)}")
        self._cipher = AESGCM(_derive(master_key, b"primeflowd seal v1", _LENGTH))
        self._id = _derive(master_key, b"primeflowd key id v1", _ID)

    @property
    def id(self) -> str:
        return self._id.hex()

    def __repr__(self) -> str:
        return f"Keyring(id={self.id})"

    def seal(self, plain: bytes, bound_to: str) -> bytes:
        """Ciphertext of `plain` that opens only with the same `bound_to`; differs every time."""
        # A random nonce is safe for some 2**32 values under one key; a secret is sealed once.
        nonce = os.urandom(_NONCE)
        return _VERSION + self._id + nonce + self._cipher.encrypt(nonce, plain, bound_to.encode())

    def open(self, sealed: bytes, bound_to: str) -> bytes:
        """The plain bytes of what `seal` made.

        Raises:
            MasterKeyError: sealed under another key, bound to something else, or damaged.
        """
        try:
            key_id = _key_id(sealed)
        except ValueError as error:
            raise MasterKeyError(f"an encrypted value in the storage {error}") from None
        if key_id != self._id:
            raise MasterKeyError(
                f"an encrypted value in the storage was written with another master key "
                f"(id {key_id.hex()}; the one in use has id {self.id})"
            )
        nonce, ciphertext = sealed[_HEAD : _HEAD + _NONCE], sealed[_HEAD + _NONCE :]
        try:
            return self._cipher.decrypt(nonce, ciphertext, bound_to.encode())
        except InvalidTag:
            # Not chained: the cause says nothing, and the row at fault is for the caller to name.
            raise MasterKeyError(
                "an encrypted value in the storage is damaged or was moved from another row"
            ) from None


def check(keyring: Keyring, tx: Tx) -> None:
    """Make sure that this is the storage's master key; a storage without one takes this.

    Runs in a write transaction, before anything is opened or sealed.

    Raises:
        MasterKeyError: the storage was written with another one; nothing was written.
    """
    note = tx.note(_CHECK_NOTE)
    if note is None:
        _put_check(keyring, tx)
        return
    try:
        sealed = bytes.fromhex(note)
        key_id = _key_id(sealed).hex()
    except ValueError:
        raise MasterKeyError(f"the note {_CHECK_NOTE} of this storage is damaged") from None
    if key_id != keyring.id:
        raise MasterKeyError(
            f"this storage was written with another master key (id {key_id}; the one given has "
            f"id {keyring.id}): give it the key it was written with, or restore the {FILE} that "
            "was made for it; nothing was changed"
        )
    keyring.open(sealed, _CHECK_NOTE)


def rotate(tx: Tx, old: Keyring, new: Keyring) -> int:
    """Seal everything anew that is sealed under `old`; how many values, the check aside.

    One transaction: all of it or nothing. Every daemon on this storage must be stopped, since a
    running one goes on sealing under the old key.

    Raises:
        MasterKeyError: `old` is not the storage's key, or a value does not open.
    """
    check(old, tx)
    count = 0
    for secret in tx.secrets(None):
        bound_to = bound_to_secret(secret.org_id, secret.id)
        sealed = new.seal(old.open(secret.sealed, bound_to), bound_to)
        tx.put_secret(msgspec.structs.replace(secret, sealed=sealed))
        count += 1
    for answer in tx.sealed_answers():
        bound_to = bound_to_answer(answer.org_id, answer.method, answer.path, answer.key)
        body = new.seal(old.open(answer.body, bound_to), bound_to)
        tx.put_answer(msgspec.structs.replace(answer, body=body), replaces=answer)
        count += 1
    for policy in tx.destination_policies():
        if policy.sealed_headers is not None:
            bound_to = bound_to_destination(policy.destination)
            sealed = new.seal(old.open(policy.sealed_headers, bound_to), bound_to)
            tx.put_destination_policy(msgspec.structs.replace(policy, sealed_headers=sealed))
            count += 1
    _put_check(new, tx)
    return count


def load(config: Config) -> Keyring:
    """The keyring of the master key that the configuration or the environment names.

    Looks at `[secrets] master_key_file`, $PRIMEFLOWD_MASTER_KEY, `master_key` in
    $CREDENTIALS_DIRECTORY and `master.key` in the state directory; the first that there is counts.

    Raises:
        MasterKeyError: none of them is there, or the first that is holds no key.
    """
    keyring = _find(config)
    if keyring is None:
        raise MasterKeyError(
            f"no master key: set secrets.master_key_file or ${ENVIRONMENT}, or put one into "
            f"{config.state_path / FILE}"
        )
    return keyring


def load_or_create(config: Config) -> tuple[Keyring, Path | None]:
    """As `load`, but makes a key in the state directory where there is none.

    The path is that of a key that was just made: the operator should back it up.

    Raises:
        MasterKeyError: what was found holds no key, or none can be made.
    """
    keyring = _find(config)
    if keyring is not None:
        return keyring, None
    path = config.state_path / FILE
    try:
        _create(path)
    except FileExistsError:
        # Another process that starts at this moment was first; its key is ours too.
        return _from_file(path), None
    except OSError as error:
        raise MasterKeyError(f"{path}: cannot be made: {error.strerror}") from error
    return _from_file(path), path


def parse(text: str, origin: str) -> Keyring:
    """The keyring of a master key in text. `origin` says in messages where it came from.

    Raises:
        MasterKeyError: not 32 bytes in base64 (either alphabet) or hex.
    """
    text = text.strip()
    if _HEX.fullmatch(text):
        return Keyring(bytes.fromhex(text))
    if not _BASE64.fullmatch(text):
        raise MasterKeyError(f"{origin}: holds no master key: {_EXPECTED}")
    return Keyring(base64.b64decode(text.rstrip("=").translate(_STANDARD) + "="))


def _find(config: Config) -> Keyring | None:
    if config.secrets.master_key_file:
        return _from_file(Path(config.secrets.master_key_file))
    # Set but empty is a slip in somebody's template, not a wish for a fresh key.
    if (text := os.environ.get(ENVIRONMENT)) is not None:
        return parse(text, f"${ENVIRONMENT}")
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        with contextlib.suppress(_Missing):
            return _from_file(Path(directory) / CREDENTIAL)
    with contextlib.suppress(_Missing):
        return _from_file(config.state_path / FILE)
    return None


class _Missing(MasterKeyError):
    """There is no such file; where others may hold the key, the search goes on."""


def _from_file(path: Path) -> Keyring:
    try:
        with path.open("rb") as file:
            # Longer than any spelling of a key: a path to something huge does no harm.
            text = file.read(1024).decode("ascii")
    except FileNotFoundError as error:
        raise _Missing(f"{path}: there is no such file; {_EXPECTED} in it") from error
    except OSError as error:
        raise MasterKeyError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        # Not chained: that exception holds what was read.
        raise MasterKeyError(f"{path}: holds no master key: {_EXPECTED}") from None
    return parse(text, str(path))


def _put_check(keyring: Keyring, tx: Tx) -> None:
    tx.put_note(_CHECK_NOTE, keyring.seal(_CHECK_TEXT, _CHECK_NOTE).hex())


def _create(path: Path) -> None:
    """Make a key at `path`, whole and durable or not at all; FileExistsError if one is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Written aside and linked into place: a crash or a second process never meets half a key.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(secrets.token_bytes(_LENGTH)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _derive(master_key: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(master_key)


def _key_id(sealed: bytes) -> bytes:
    if sealed[:1] != _VERSION or len(sealed) < _HEAD + _NONCE + _TAG:
        raise ValueError("is damaged, or was written by a newer primeflowd")
    return sealed[len(_VERSION) : _HEAD]
