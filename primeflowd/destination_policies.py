"""What operators set for destinations, as operations over one transaction.

A destination's settings are those of the configuration file, if it has a table there, else those
that were stored through the API. Whether it is disabled may be stored for either. Policies belong
to no org: whoever's callbacks go to a destination, its limits are shared.

Every change moves a note on, by which other nodes see that there is something new.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from primeflowd import extra_headers
from primeflowd.config import DestinationSettings, destination_settings
from primeflowd.durations import Duration
from primeflowd.errors import InvalidRequest, NotFound, StateRefused
from primeflowd.hookspecs import Tx
from primeflowd.instants import Micros
from primeflowd.keyring import Keyring, bound_to_destination
from primeflowd.model import DestinationPolicy, new_id
from primeflowd.unit import Unit

Configured = Mapping[str, DestinationSettings]
"""The tables of the configuration file."""

VERSION: Final = "destination_policies"
"""The note that moves on with every change."""

NEVER_SET: Final = DestinationSettings()


class Turn(msgspec.Struct, frozen=True):
    """A destination was disabled, for this reason; or enabled, where it is None."""

    disabled: str | None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What to change; of `settings` the plain values by name, None for the default. `headers`
    likewise, None takes one away. `disabled`: the reason, or None to enable it; absent, as it is.
    """

    settings: Mapping[str, Any]
    headers: Mapping[str, str | None]
    disabled: str | msgspec.UnsetType | None


def change(
    unit: Unit, keyring: Keyring, configured: Configured, destination: str, wanted: Change
) -> tuple[DestinationPolicy, Turn | None]:
    """Change the policy of a destination, or give it one.

    Raises:
        StateRefused: `configured`: the configuration file says what is to be changed.
        InvalidRequest: `invalid_` and the name of a setting.
        MasterKeyError: its stored headers do not open.
    """
    policy = unit.tx.destination_policy(destination) or empty(destination, unit.now)
    former = policy.disabled_reason
    in_file = configured.get(destination)
    if in_file is not None:
        if wanted.settings or wanted.headers:
            raise _configured(destination)
        if in_file.disabled and wanted.disabled is not msgspec.UNSET:
            raise _configured(destination)
    else:
        policy = _with_settings(policy, wanted.settings)
        if wanted.headers:
            policy = _with_headers(policy, keyring, wanted.headers)
    if wanted.disabled is not msgspec.UNSET:
        since = unit.now if wanted.disabled is not None else None
        # Enabled again, it is given time again before it can be disabled for failing.
        policy = replace(
            policy, disabled_reason=wanted.disabled, disabled_at=since, failing_since=None
        )
    policy = replace(policy, updated_at=unit.now)
    _put(unit.tx, policy)
    return policy, _turn(former, policy.disabled_reason)


def remove(unit: Unit, configured: Configured, destination: str) -> tuple[None, Turn | None]:
    """Forget what is stored for a destination: it is as any other, or as the file says.

    Raises:
        NotFound: nothing is stored.
        StateRefused: `configured`: nothing is, but there is a table in the file.
    """
    policy = unit.tx.destination_policy(destination)
    if policy is None:
        if destination in configured:
            raise _configured(destination)
        raise NotFound(f"{destination} has no policy")
    unit.tx.delete_destination_policy(destination)
    _move_on(unit.tx)
    return None, _turn(policy.disabled_reason, None)


def note_failing(tx: Tx, destination: str, since: Micros | None, now: Micros) -> None:
    """Write down since when every attempt has failed; None: one has succeeded."""
    policy = tx.destination_policy(destination)
    if (policy.failing_since if policy else None) == since:
        return
    if since is None and policy is not None and policy.settings is None and _enabled(policy):
        # There was nothing else to it.
        tx.delete_destination_policy(destination)
        _move_on(tx)
    else:
        _put(tx, replace(policy or empty(destination, now), failing_since=since, updated_at=now))


def disable(
    tx: Tx, destination: str, reason: str, now: Micros, failing_before: Micros | None = None
) -> bool:
    """Disable a destination that is enabled; whether it was.

    Args:
        failing_before: only if it is known to have failed since then: another node may have met a
            success.
    """
    policy = tx.destination_policy(destination)
    if policy is not None and not _enabled(policy):
        return False
    if failing_before is not None and not (
        policy is not None
        and policy.failing_since is not None
        and policy.failing_since <= failing_before
    ):
        return False
    policy = policy or empty(destination, now)
    _put(tx, replace(policy, disabled_reason=reason, disabled_at=now, updated_at=now))
    return True


def settings_of(
    policy: DestinationPolicy | None, configured: DestinationSettings | None
) -> DestinationSettings:
    """The settings that hold, without headers."""
    if configured is not None:
        return configured
    if policy is None or policy.settings is None:
        return NEVER_SET
    return destination_settings(msgspec.json.decode(policy.settings))


def headers_of(policy: DestinationPolicy | None, keyring: Keyring) -> dict[str, str]:
    """The stored headers.

    Raises:
        MasterKeyError: they do not open.
    """
    if policy is None or policy.sealed_headers is None:
        return {}
    plain = keyring.open(policy.sealed_headers, bound_to_destination(policy.destination))
    return msgspec.json.decode(plain, type=dict[str, str])


def disabled_reason(
    policy: DestinationPolicy | None, configured: DestinationSettings | None
) -> str | None:
    """Why nothing is sent there; None while something may be."""
    if configured is not None and configured.disabled:
        return configured.disabled
    return policy.disabled_reason if policy is not None else None


def plain(settings: DestinationSettings) -> dict[str, Any]:
    """What is set, as plain values by name; headers and `disabled` left out."""
    found = {}
    for name in DestinationSettings.__struct_fields__:
        value = getattr(settings, name)
        if name not in ("headers", "disabled") and value != getattr(NEVER_SET, name):
            found[name] = value.text if isinstance(value, Duration) else value
    return found


def _with_settings(policy: DestinationPolicy, wanted: Mapping[str, Any]) -> DestinationPolicy:
    if not wanted:
        return policy
    values = {**plain(settings_of(policy, None)), **wanted}
    values = {name: value for name, value in values.items() if value is not None}
    try:
        checked = destination_settings(values)
    except ValueError as error:
        name = str(error).partition(":")[0]
        raise InvalidRequest(f"invalid_{name}", str(error), {"field": name}) from error
    return replace(policy, settings=msgspec.json.encode(plain(checked)).decode())


def _with_headers(
    policy: DestinationPolicy, keyring: Keyring, wanted: Mapping[str, str | None]
) -> DestinationPolicy:
    # Names of headers differ in more than case only.
    kept = {name.lower(): (name, value) for name, value in headers_of(policy, keyring).items()}
    for name, value in wanted.items():
        if value is None:
            kept.pop(name.lower(), None)
        else:
            kept[name.lower()] = name, value
    headers = dict(kept.values())
    try:
        extra_headers.check(headers)
    except ValueError as error:
        raise InvalidRequest("invalid_headers", f"headers: {error}", {"field": "headers"}) from None
    if not headers:
        return replace(policy, sealed_headers=None)
    sealed = keyring.seal(msgspec.json.encode(headers), bound_to_destination(policy.destination))
    return replace(policy, sealed_headers=sealed, settings=policy.settings or "{}")


def empty(destination: str, now: Micros) -> DestinationPolicy:
    """The policy of a destination for which nothing is stored."""
    return DestinationPolicy(
        destination=destination,
        settings=None,
        sealed_headers=None,
        disabled_reason=None,
        disabled_at=None,
        failing_since=None,
        created_at=now,
        updated_at=now,
    )


def _enabled(policy: DestinationPolicy) -> bool:
    return policy.disabled_reason is None


def _turn(before: str | None, after: str | None) -> Turn | None:
    return Turn(after) if (before is None) != (after is None) else None


def _put(tx: Tx, policy: DestinationPolicy) -> None:
    tx.put_destination_policy(policy)
    _move_on(tx)


def _move_on(tx: Tx) -> None:
    tx.put_note(VERSION, new_id())


def _configured(destination: str) -> StateRefused:
    return StateRefused(
        "configured",
        f"{destination} has a table in the configuration file, which says this; change it there",
    )
