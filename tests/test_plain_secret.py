"""Contract 6.1 and 6.2: what a plain secret looks like and which keys follow from it."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd import plain_secret

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def test_6_1_a_secret_is_whsec_and_base64_of_32_bytes() -> None:
    plain = plain_secret.generate()
    assert plain.startswith("whsec_")
    assert len(base64.b64decode(plain.removeprefix("whsec_"), validate=True)) == 32
    assert plain_secret.key_bytes(plain) == base64.b64decode(plain.removeprefix("whsec_"))
    assert plain != plain_secret.generate()


def test_6_1_the_part_that_is_shown_is_short() -> None:
    assert plain_secret.shown_part(SECRET) == "whsec_AAEC"


@pytest.mark.parametrize(
    "plain",
    [
        "",
        "whsec_",
        "whsec_primeflowd_example_0001",
        "whsec_AAE=\n",
        "whsec_AAE",
        SECRET.removeprefix("whsec_"),
        "whsec_é" + "A" * 42,
    ],
)
def test_what_is_not_a_secret_has_no_key_and_is_not_repeated(plain: str) -> None:
    with pytest.raises(ValueError, match="not whsec_ and base64") as caught:
        plain_secret.key_bytes(plain)
    assert len(plain) < 10 or plain not in str(caught.value)


@given(st.binary(min_size=1, max_size=64))
def test_key_bytes_are_what_was_encoded(key: bytes) -> None:
    assert plain_secret.key_bytes("whsec_" + base64.b64encode(key).decode()) == key


def test_6_2_the_key_pair_never_changes() -> None:
    """6.2: receivers keep the public key; another one for the same secret would cut them off."""
    assert plain_secret.public_key(SECRET) == "whpk_K53tDYtHgVrUBrfRPjAAbDECLziCWqwY7P4Wy1X1bRk="


def test_6_2_the_hmac_key_is_not_the_ed25519_seed() -> None:
    seed = plain_secret.ed25519_key(SECRET).private_bytes_raw()
    assert len(seed) == 32
    assert seed != plain_secret.key_bytes(SECRET)
