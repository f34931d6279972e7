"""What an operator is told of: the kinds of events, and the payload of the callback about one.

Pure. The name of a kind is stable, and so are the keys of its `data`; the log has the same events
under the same names, with an underscore for the dot. README.md has an example of each.
"""

from typing import Final, Literal, TypeAlias

import msgspec

from primeflowd.instants import MILLISECOND, Micros, to_datetime
from primeflowd.model import Delivery, SigningSecret

DELIVERY_FAILED: Final = "delivery.failed"
DESTINATION_SUSPENDED: Final = "destination.suspended"
DESTINATION_RECOVERED: Final = "destination.recovered"
DESTINATION_DISABLED: Final = "destination.disabled"
SECRET_ROTATED: Final = "secret.rotated"  # noqa: S105 - a name
SECRET_DISABLED_IN_USE: Final = "secret.disabled_in_use"  # noqa: S105 - a name
STORAGE_RECOVERED: Final = "storage.recovered"

KINDS: Final = (
    DELIVERY_FAILED,
    DESTINATION_SUSPENDED,
    DESTINATION_RECOVERED,
    DESTINATION_DISABLED,
    SECRET_ROTATED,
    SECRET_DISABLED_IN_USE,
    STORAGE_RECOVERED,
)

Data: TypeAlias = dict[str, str | int | None]


class Event(msgspec.Struct, frozen=True):
    """Something that happened at `at`.

    Attributes:
        org_id: whose delivery or secret it is about, or brought it to light; None: nobody's.
        subject: those of one kind with one subject are told of together: the destination, the
            secret or the org.
        data: of this kind, in the order of the payload.
    """

    kind: str
    at: Micros
    org_id: str | None
    subject: str | None
    data: Data

    @property
    def log_name(self) -> str:
        """What the log calls it."""
        return self.kind.replace(".", "_")


def delivery_failed(after: Delivery) -> Event:
    """A delivery has spent its policy, or met something permanent."""
    return Event(
        DELIVERY_FAILED,
        after.updated_at,
        after.org_id,
        after.destination,
        {
            "org_id": after.org_id,
            "batch_id": after.batch_id,
            "delivery_id": after.id,
            "destination": after.destination,
            "failure_reason_code": after.failure_reason,
            "failure_detail": after.failure_detail,
            "attempt_count": after.attempt_count,
        },
    )


def destination_turned(
    delivery: Delivery, change: Literal["suspended", "recovered"], at: Micros
) -> Event:
    """An attempt of `delivery` had its destination suspended, or found it well again."""
    kind = DESTINATION_SUSPENDED if change == "suspended" else DESTINATION_RECOVERED
    data: Data = {"destination": delivery.destination}
    return Event(kind, at, delivery.org_id, delivery.destination, data)


def destination_disabled(destination: str, reason: str, at: Micros) -> Event:
    """Nothing is sent there until somebody enables it: an operator's doing, or its own."""
    data: Data = {"destination": destination, "reason": reason}
    return Event(DESTINATION_DISABLED, at, None, destination, data)


def secret_rotated(current: SigningSecret, former: SigningSecret | None, at: Micros) -> Event:
    """Another secret of an org is the current one now."""
    return Event(
        SECRET_ROTATED,
        at,
        current.org_id,
        current.org_id,
        {
            "org_id": current.org_id,
            "secret_id": current.id,
            "key_prefix": current.key_prefix,
            "former_secret_id": former.id if former is not None else None,
        },
    )


def secret_disabled_in_use(delivery: Delivery, signed_with: str | None) -> Event:
    """A delivery is pinned to a secret that is disabled: its attempt was signed with another one,
    or not at all."""
    return Event(
        SECRET_DISABLED_IN_USE,
        delivery.updated_at,
        delivery.org_id,
        delivery.signing_secret_id,
        {
            "org_id": delivery.org_id,
            "secret_id": delivery.signing_secret_id,
            "signed_with": signed_with,
            "batch_id": delivery.batch_id,
            "delivery_id": delivery.id,
            "destination": delivery.destination,
        },
    )


def storage_recovered(since: Micros, at: Micros, cause: str | None) -> Event:
    """Storage failed, as was noticed at `since`, and is well again. `cause`: of the last failure,
    where it is known."""
    lasted = max(0, at - since) // MILLISECOND
    data: Data = {"since": spelt(since), "lasted_ms": lasted, "cause": cause}
    return Event(STORAGE_RECOVERED, at, None, None, data)


def freeze(
    event_id: str,
    node_id: str,
    event: Event,
    subject: str | None,
    count: int,
    last_at: Micros,
) -> bytes:
    """The payload about `count` events of one kind, of which `event` was the first.

    `subject` None: of several subjects, if events of this kind have one.
    """
    return msgspec.json.encode(
        {
            "event": event.kind,
            "event_id": event_id,
            "node_id": node_id,
            "subject": subject,
            "count": count,
            "first_at": spelt(event.at),
            "last_at": spelt(last_at),
            "data": event.data,
        }
    )


def spelt(instant: Micros) -> str:
    """As payloads have it (contract 4.3)."""
    return to_datetime(instant).isoformat()
