"""How API keys look and what their scopes allow (contract 2.1, 2.2)."""

import hashlib
import re

import pytest

from primeflowd.access_keys import (
    check_org_id,
    check_scopes,
    digest,
    grants,
    looks_like_key,
    new_key,
)
from primeflowd.errors import InvalidRequest


def test_only_the_digest_is_kept() -> None:
    """2.1: `pfk_` and 40 lower-case letters and digits; a SHA-256 of it is stored."""
    key, plain = new_key("acme", ["admin"], "ci", 5)
    assert re.fullmatch(r"pfk_[a-z0-9]{40}", plain)
    assert looks_like_key(plain)
    assert key.digest == digest(plain) == hashlib.sha256(plain.encode()).hexdigest()
    assert plain.startswith(key.key_prefix)
    assert len(key.key_prefix) == 10
    assert (key.org_id, key.scopes, key.label, key.created_at) == ("acme", ("admin",), "ci", 5)
    assert key.revoked_at is None


def test_keys_differ() -> None:
    assert len({new_key("acme", ["admin"], None, 0)[1] for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pfk_",
        "pfk_" + "a" * 39,
        "pfk_" + "a" * 41,
        "pfk_" + "A" * 40,
        "pfk_" + "a" * 40 + "\n",
        "abc_" + "a" * 40,
    ],
)
def test_what_is_no_key(text: str) -> None:
    """2.1."""
    assert not looks_like_key(text)


@pytest.mark.parametrize("org_id", ["a", "x" * 128, "Čeda & Co", "a.b/c:d"])
def test_org_ids(org_id: str) -> None:
    """2.3."""
    check_org_id(org_id)
    assert new_key(org_id, ["admin"], None, 0)[0].org_id == org_id


@pytest.mark.parametrize("org_id", ["", "x" * 129, "a\nb", "*", "\u2028"])
def test_what_is_no_org_id(org_id: str) -> None:
    """2.3: 1 to 128 printable characters."""
    with pytest.raises(InvalidRequest) as caught:
        check_org_id(org_id)
    assert caught.value.code == "invalid_org_id"


def test_operator_keys() -> None:
    """2.2: the org `*`."""
    assert new_key("*", ["admin"], None, 0)[0].org_id == "*"


@pytest.mark.parametrize("label", ["a\nb", "x" * 129])
def test_labels_that_are_none(label: str) -> None:
    """2.10."""
    with pytest.raises(InvalidRequest):
        new_key("acme", ["admin"], label, 0)


@pytest.mark.parametrize("scopes", [[], ["x"], ["admin", "x"], ["batches:delete"], ["jobs:read"]])
def test_scopes_that_are_none(scopes: list[str]) -> None:
    """2.2."""
    with pytest.raises(InvalidRequest) as caught:
        check_scopes(scopes)
    assert caught.value.code == "invalid_scope"


def test_scopes_keep_their_order_and_lose_their_doubles() -> None:
    """2.2."""
    assert check_scopes(["keys:*", "batches:read", "keys:*"]) == ("keys:*", "batches:read")


def test_what_scopes_grant() -> None:
    """2.2: `*` is read and write; admin is all of it."""
    assert grants(("batches:*",)) == {"batches:read", "batches:write"}
    assert grants(("batches:read", "keys:write")) == {"batches:read", "keys:write"}
    assert grants(("admin",)) > grants(("policies:*", "secrets:*", "deliveries:*"))
    assert "admin" not in grants(("policies:*", "batches:*", "deliveries:*", "secrets:*", "keys:*"))
    assert grants(("from-the-future:read",)) == frozenset()
