"""What handlers check of a body beyond its types, as JSON Schema: see json_schema.Rules.

The limits are the handlers' own constants. tests/acceptance/test_openapi.py sends what these rules
allow and what they forbid to a daemon, which has to agree.
"""

from typing import Any, Final

from primeflowd import callback_url, extra_headers
from primeflowd.access_keys import ACTIONS, ADMIN, MAX_LABEL, RESOURCES
from primeflowd.api import (
    batches,
    destinations,
    errors,
    items,
    keys,
    policies,
    recoveries,
    secrets,
    shapes,
)
from primeflowd.api.decode import MAX_PLAN_ID
from primeflowd.api.openapi_document.json_schema import JsonSchema
from primeflowd.events import KINDS
from primeflowd.model import TERMINAL_BATCH

URL: Final[JsonSchema] = {
    "format": "uri",
    "maxLength": callback_url.MAX_LENGTH,
    # No user, no fragment, some host.
    "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\s\\]+([/?][^#\s\\]*)?$",
}
PLAN: Final[JsonSchema] = {
    "maxLength": MAX_PLAN_ID,
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$",
    "description": "which retry policy counts; empty: the org's own",
}
INSTANT: Final[JsonSchema] = {
    "pattern": "^(19[7-9]|[2-9][0-9][0-9])",
    "description": "RFC 3339 with a time zone, from 1970 on",
}


def _text(longest: int, description: str) -> JsonSchema:
    return {"maxLength": longest, "pattern": PLAN["pattern"], "description": description}


def _either(*schemas: JsonSchema) -> dict[str, Any]:
    return {"anyOf": [*schemas, {"type": "null"}]}


def _header_names() -> str:
    """What header names look like that are free to be set."""
    taken = [f"{name}$" for name in sorted(extra_headers.RESERVED)]
    taken += extra_headers.RESERVED_PREFIXES
    any_case = ("".join(f"[{c.upper()}{c}]" if c.isalpha() else c for c in t) for t in taken)
    return rf"^(?!{'|'.join(any_case)})[!#$%&'*+.^_`|~0-9A-Za-z-]{{1,128}}$"


_VERBATIM: Final = "any JSON; kept as it is spelled"
_DELAY: Final[JsonSchema] = {
    "type": "string",
    "format": "duration-text",
    "description": "a duration of 1ms to 30d: numbers, each with one of ns, us, µs, ms, s, m, h, d",
    "examples": ["15m", "1h30m", "1.5h", "500ms", "7d"],
}
_BATCH_PAYLOAD: Final[JsonSchema] = {
    "type": "object",
    "description": "about a batch",
    "required": [
        "event",
        "batch_id",
        "status",
        "output",
        "duration_ms",
        "created_at",
        "completed_at",
        "metadata",
    ],
    "properties": {
        "event": {"type": "string", "enum": sorted(f"batch.{each}" for each in TERMINAL_BATCH)},
        "batch_id": {"type": "string", "format": "uuid"},
        "status": {"type": "string", "enum": sorted(TERMINAL_BATCH)},
        "output": {},
        "duration_ms": {"type": "integer", "minimum": 0},
        "created_at": {"type": "string", "format": "date-time"},
        "completed_at": {"type": "string", "format": "date-time"},
        "metadata": {},
    },
}
_EVENT_PAYLOAD: Final[JsonSchema] = {
    "type": "object",
    "description": "about an event of the daemon, in the operator's org",
    "required": [
        "event",
        "event_id",
        "node_id",
        "subject",
        "count",
        "first_at",
        "last_at",
        "data",
    ],
    "properties": {
        "event": {"type": "string", "enum": sorted(KINDS)},
        "event_id": {"type": "string", "format": "uuid"},
        "node_id": {"type": "string"},
        "subject": {"type": ["string", "null"]},
        "count": {"type": "integer", "minimum": 1},
        "first_at": {"type": "string", "format": "date-time"},
        "last_at": {"type": "string", "format": "date-time"},
        "data": {"type": "object"},
    },
}
_PAYLOAD: Final[JsonSchema] = {
    "description": "payload_bytes, parsed. Its times have +00:00 where others have Z.",
    "oneOf": [_BATCH_PAYLOAD, _EVENT_PAYLOAD],
}

RULES: Final[dict[tuple[type, str], JsonSchema]] = {
    (batches.BatchBody, ""): {
        "not": {
            "required": ["items", "items_total"],
            "properties": {"items": {"type": "array"}, "items_total": {"type": "integer"}},
        },
        "if": {"required": ["completed_at"], "properties": {"completed_at": {"type": "string"}}},
        "then": {
            "required": ["status"],
            "properties": {"status": {"enum": sorted(TERMINAL_BATCH)}},
        },
    },
    (batches.BatchBody, "id"): {"format": "uuid", "description": "made here where none is given"},
    (batches.BatchBody, "plan_id"): PLAN,
    (batches.BatchBody, "callback_url"): URL
    | {"description": "where the callback goes; without one there is none"},
    (batches.BatchBody, "metadata"): {"description": f"{_VERBATIM}; part of the payload"},
    (batches.BatchBody, "items"): {"description": "give either these or items_total"},
    (batches.BatchBody, "status"): {
        "description": "queued where it is absent; with a terminal one the callback is sent at once"
    },
    (batches.BatchBody, "output"): {"description": f"{_VERBATIM}; part of the payload"},
    (batches.BatchBody, "started_at"): INSTANT,
    (batches.BatchBody, "completed_at"): INSTANT
    | {"description": "RFC 3339 with a time zone, from 1970 on; with a terminal status only"},
    (batches.ItemBody, "client_ref"): _text(
        batches.MAX_CLIENT_REF, "your name for it; no other item of the batch has the same"
    ),
    (batches.ItemBody, "input"): {"description": _VERBATIM},
    (batches.BulkBody, "batches"): {
        "items": {"$ref": "#/components/schemas/BatchBody"},
        "description": "each stands alone: one that is refused has its error among the results",
    },
    (batches.CompletionBody, "output"): {"description": f"{_VERBATIM}; part of the payload"},
    (batches.CompletionBody, "completed_at"): INSTANT,
    (batches.CancellationBody, "reason"): _text(batches.MAX_REASON, "for people"),
    (items.ReportBody, ""): {
        "not": {"properties": {"sequence_index": {"type": "null"}, "client_ref": {"type": "null"}}},
    },
    (items.ReportBody, "sequence_index"): {
        "description": "which item, counting from 0; or name it by client_ref"
    },
    (items.ReportBody, "client_ref"): _text(batches.MAX_CLIENT_REF, "which item"),
    (items.ReportBody, "output"): {"description": _VERBATIM},
    (items.ReportBody, "error"): {"description": _VERBATIM},
    (policies.PolicyBody, ""): {
        "description": "A retry policy as it is set; fields that are not known are ignored.",
        "required": ["delays"],
        "if": {"properties": {"delays": {"maxItems": 0}}},
        "then": {"properties": {"max_retries": _either({"const": 0})}},
    },
    (policies.PolicyBody, "plan_id"): PLAN
    | {"description": "the plan that it is for; empty: all plans that have none of their own"},
    (policies.PolicyBody, "delays"): {
        "type": "array",
        "maxItems": policies.MAX_DELAYS,
        "items": _DELAY,
        "description": "the wait before each retry, from the end of the attempt before it",
    },
    (policies.PolicyBody, "max_retries"): _either(
        {"type": "integer", "minimum": 0, "maximum": policies.MAX_RETRIES}
    )
    | {
        "description": "as many as there are delays where it is absent; beyond them the last "
        "delay repeats"
    },
    (recoveries.RecoverBody, "since"): INSTANT,
    (recoveries.RecoverBody, "until"): INSTANT
    | {"description": "RFC 3339 with a time zone, not before since; now where it is absent"},
    (recoveries.RecoverBody, "destination"): URL
    | {"description": "only what goes there: scheme, host and port, as https://example.com:443"},
    (destinations.DestinationBody, "rate"): {
        "description": "attempts per second that each node may begin; null or 0: no limit"
    },
    (destinations.DestinationBody, "burst"): {"description": "of them at once"},
    (destinations.DestinationBody, "concurrency"): {
        "description": "attempts that each node may have under way at once; null or 0: no limit"
    },
    (destinations.DestinationBody, "timeout"): _DELAY
    | {"description": "most that an attempt may take; null: as the configuration says"},
    (destinations.DestinationBody, "disable_after"): _DELAY
    | {
        "description": "how long every attempt must have failed before it is disabled; null: as "
        "the configuration says"
    },
    (destinations.DestinationBody, "disable_when_gone"): {
        "description": "disable it when an attempt is answered 410, for all URLs and orgs"
    },
    (destinations.DestinationBody, "while_disabled"): {
        "description": "what becomes of deliveries that are due while it is disabled"
    },
    (destinations.DestinationBody, "headers"): {
        "maxProperties": extra_headers.MAX_HEADERS,
        "propertyNames": {"pattern": _header_names()},
        "additionalProperties": _either(
            {
                "type": "string",
                "maxLength": extra_headers.MAX_VALUE,
                "pattern": "^([!-~]([ -~]*[!-~])?)?$",
            }
        ),
        "description": "to add to every attempt, by name; values are encrypted at rest and never "
        "shown; null takes one away",
    },
    (destinations.DestinationBody, "disabled_reason"): _text(
        destinations.MAX_REASON, "disables it, and says why; null enables it"
    )
    | {"minLength": 1},
    (secrets.NewSecretBody, "label"): _text(secrets.MAX_LABEL, "for people"),
    (secrets.ChangeBody, "label"): _text(secrets.MAX_LABEL, "for people; null takes it away"),
    (secrets.ChangeBody, "is_current"): {"description": "true promotes it"},
    (keys.NewKeyBody, "label"): {
        "maxLength": MAX_LABEL,
        "pattern": r"^[\p{L}\p{M}\p{N}\p{P}\p{S} ]*$",
        "description": "for people; all characters printable",
    },
    (keys.NewKeyBody, "scopes"): {
        "minItems": 1,
        "items": {
            "type": "string",
            "enum": [ADMIN, *(f"{each}:{may}" for each in RESOURCES for may in (*ACTIONS, "*"))],
        },
        "description": "what it may do, none of it beyond the key that makes it; that key's own "
        "where this is absent",
    },
    (errors.Envelope, ""): {
        "description": "What every refusal looks like; details only where there are some.",
    },
    (errors.Envelope, "error"): {
        "enum": sorted({*errors.TYPES.values()}),
        "description": "what kind of refusal it is; one for each status",
    },
    (errors.Envelope, "code"): {"description": "what is wrong, for programs"},
    (errors.Envelope, "message"): {"description": "what is wrong, for people"},
    (shapes.DeliveryShape, "payload_bytes"): {"description": "the body of every attempt, exactly"},
    (shapes.DeliveryShape, "payload"): _PAYLOAD,
    (shapes.BatchShape, "metadata"): {"description": "as it was given"},
    (shapes.BatchShape, "output"): {"description": "as it was given; null until it is known"},
}
