"""The nouns of primeflowd as small frozen values, and the two state machines.

A batch::

    queued ──> running ──> succeeded | failed | partial_succeeded | cancelled      (terminal)
       └───────────────────────^

A delivery::

    pending ──> delivering ──> succeeded | failed                                   (terminal)
       ^             │
       └─────────────┘  a failed attempt, with retries left: pending again, `due_at` in the future

`delivering` is a delivery that a sender of this node is attempting at this moment. It is not
written to storage (that would cost a commit per attempt and say nothing after a crash): a stored
delivery is `pending`, `succeeded` or `failed`, and the API shows what the senders hold.

Ids are UUIDv7 in canonical lower-case text. Instants are `Micros`. JSON that came from a client is
kept as canonical bytes (see payload.py), never as values, so that numbers keep their spelling.
"""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import msgspec
from uuid_utils import uuid7

from primeflowd.instants import MILLISECOND, Micros

BatchStatus: TypeAlias = Literal[
    "queued", "running", "succeeded", "failed", "partial_succeeded", "cancelled"
]
TerminalStatus: TypeAlias = Literal["succeeded", "failed", "partial_succeeded", "cancelled"]
ItemStatus: TypeAlias = Literal["queued", "running", "succeeded", "failed", "cancelled"]
DeliveryStatus: TypeAlias = Literal["pending", "delivering", "succeeded", "failed"]
FailureReason: TypeAlias = Literal[
    "http_status",
    "gone",
    "timeout",
    "dns_error",
    "connection_error",
    "tls_error",
    "response_error",
    "url_not_allowed",
    "cancelled",
    "interrupted",
    "internal_error",
]
PolicySource: TypeAlias = Literal["plan", "org", "default"]

TERMINAL_BATCH: Final = frozenset({"succeeded", "failed", "partial_succeeded", "cancelled"})
TERMINAL_ITEM: Final = frozenset({"succeeded", "failed", "cancelled"})
TERMINAL_DELIVERY: Final = frozenset({"succeeded", "failed"})

OPERATOR_ORG: Final = "*"
"""The org of a key that may act for any org it names (contract 2.2)."""


def new_id() -> str:
    """A fresh UUIDv7 in canonical text; ids made later by one process sort later."""
    return str(uuid7())


def first_id(at: Micros) -> str:
    """What every id made at `at` or later sorts after, and none made a millisecond before."""
    milliseconds = at // MILLISECOND
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7"


class Batch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A platform's batch, as far as callbacks need it.

    Attributes:
        metadata, output: canonical JSON, None when the client gave none (an explicit null of
            `output` is `b"null"`).
        items_total: how many items it has, None when the client told of none.
        payload: the frozen bytes; set in the transaction that ends a batch with a callback URL.
    """

    id: str
    org_id: str
    plan_id: str
    callback_url: str | None
    metadata: bytes | None
    status: BatchStatus
    output: bytes | None
    items_total: int | None
    items_succeeded: int
    items_failed: int
    items_cancelled: int
    cancellation_reason: str | None
    payload: bytes | None
    created_at: Micros
    started_at: Micros | None
    completed_at: Micros | None
    updated_at: Micros


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of a batch. `sequence_index` counts from 0 and is unique in its batch;
    so is `client_ref` where one was given. `input`, `output` and `error` are canonical JSON."""

    org_id: str
    batch_id: str
    sequence_index: int
    client_ref: str | None
    status: ItemStatus
    input: bytes | None
    output: bytes | None
    error: bytes | None
    updated_at: Micros


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """An org's retry policy for one plan, or for all its plans where `plan_id` is empty.

    `delays` are spelled as the client sent them; see durations.py.
    """

    org_id: str
    plan_id: str
    delays: tuple[str, ...]
    max_retries: int
    created_at: Micros
    updated_at: Micros


class Delivery(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One callback on its way: a batch's payload, a URL, and the policy copied when it was made.

    Attributes:
        destination: scheme, host and port of the URL, as `https://example.com:443`.
        attempt_count: attempts on record.
        interruptions: how many of these a drain cut short; they use up no retry (contract 5.6).
        due_at: when the next attempt may start; None in a terminal state.
        claimed_by: the node that holds it in memory; None when any node may claim it.
    """

    id: str
    batch_id: str
    org_id: str
    callback_url: str
    destination: str
    is_automatic: bool
    status: DeliveryStatus
    failure_reason: FailureReason | None
    failure_detail: str | None
    attempt_count: int
    interruptions: int
    delays: tuple[str, ...]
    max_retries: int
    policy_source: PolicySource
    policy_plan_id: str
    signing_secret_id: str | None
    due_at: Micros | None
    claimed_by: str | None
    created_at: Micros
    updated_at: Micros
    completed_at: Micros | None

    @property
    def max_attempts(self) -> int:
        return self.max_retries + 1


class Attempt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One POST of a delivery, on record once its outcome is known.

    Attributes:
        status_code: of the answer; None when none came.
        response_body: at most `delivery.max_response_body` bytes of valid text.
        response_time: whole milliseconds from the start of the attempt to its end.
        failure_reason: None for a success.
        signing_secret_id: the secret it was signed with first; None if unsigned.
        created_at: when it started.
    """

    id: str
    org_id: str
    delivery_id: str
    attempt_number: int
    status_code: int | None
    response_body: str | None
    response_time: int
    error_message: str | None
    failure_reason: FailureReason | None
    signing_secret_id: str | None
    created_at: Micros


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an attempt met on the network, before anybody judged it.

    Attributes:
        status_code: of the final response; None when no complete response head arrived.
        headers: of that response, names in lower case, in the order received. From the network
            they are read once somebody asks for them.
        body: the first bytes of the body, undecoded and never decompressed.
        failure: what kept the exchange from completing; None when a response was read (whatever
            its status) or enough of it.
        error_message: prose for `failure`, without secrets.
        address: `ip:port` that was connected to, None when no connection was made.
        started_at, ended_at: of the whole exchange, name resolution included.
    """

    status_code: int | None
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    failure: FailureReason | None = None
    error_message: str | None = None
    address: str | None = None
    started_at: Micros
    ended_at: Micros

    def header(self, name: str) -> str | None:
        """First value of the header `name` (lower case), or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What an outcome means for its delivery.

    Attributes:
        decision: `success` ends it well, `fail` ends it badly, `retry` asks the policy.
        reason: for the last two, what went wrong.
        detail: prose for people, without secrets.
        wait: the receiver asked for at least this many microseconds before the next attempt.
        destination_failed: the destination as a whole looks ill (as opposed to this callback
            being refused): its window closes. After enough attempts that met no answer at all it
            is suspended.
    """

    decision: Literal["success", "retry", "fail"]
    reason: FailureReason | None = None
    detail: str | None = None
    wait: Micros | None = None
    destination_failed: bool = False


class SigningSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A signing secret of an org as stored. `sealed` is the ciphertext of the plain secret."""

    id: str
    org_id: str
    key_prefix: str
    sealed: bytes
    is_current: bool
    label: str | None
    disabled_at: Micros | None
    last_used_at: Micros | None
    created_at: Micros
    updated_at: Micros


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key of the API as stored: its SHA-256 (hex) and what it may do, never the key itself."""

    id: str
    org_id: str
    digest: str
    key_prefix: str
    scopes: tuple[str, ...]
    label: str | None
    revoked_at: Micros | None
    created_at: Micros


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request with an idempotency key (contract 2.6).

    `body_digest` is the SHA-256 (hex) of the request's body. `sealed` says that `body` is
    ciphertext, because the answer held a secret.
    """

    org_id: str
    method: str
    path: str
    key: str
    body_digest: str
    status: int
    body: bytes
    sealed: bool
    created_at: Micros


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk redelivery of the failed deliveries of a window: a durable job (contract 5.4).

    `position` is the id of the last delivery dealt with, so that the job resumes after a restart.
    `matched` is the number found when it was asked for; each ends as `redelivered` or `skipped`
    (its batch had a delivery in flight by then, or was redelivered by this job already).
    """

    id: str
    org_id: str
    since: Micros
    until: Micros
    destination: str | None
    failure_reason: FailureReason | None
    status: Literal["running", "completed"]
    matched: int
    redelivered: int
    skipped: int
    position: str | None
    created_at: Micros
    completed_at: Micros | None


class DestinationPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has set for a destination, or what has become of it, as stored.

    Attributes:
        settings: JSON of config.DestinationSettings without headers and `disabled`; None: nothing
            was set, or the configuration file says it all.
        sealed_headers: ciphertext of the headers to add, as a JSON object; None for none.
        disabled_reason: why nothing is sent there; None while it is enabled.
        disabled_at: since when.
        failing_since: every attempt since has failed; None where that is not known.
    """

    destination: str
    settings: str | None
    sealed_headers: bytes | None
    disabled_reason: str | None
    disabled_at: Micros | None
    failing_since: Micros | None
    created_at: Micros
    updated_at: Micros
