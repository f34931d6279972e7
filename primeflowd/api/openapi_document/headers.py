"""The header fields of requests and answers, as components of the document."""

from typing import Final

from primeflowd.api import idempotency, request_id
from primeflowd.api.auth import ORG_HEADERS
from primeflowd.api.openapi_document.json_schema import JsonSchema

_ORG: Final[JsonSchema] = {
    "name": ORG_HEADERS[0],
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    "example": "acme",
}
OF_REQUESTS: Final[JsonSchema] = {
    "Org": {**_ORG, "description": "the org; the key's own where it is absent"},
    "NamedOrg": {**_ORG, "required": True, "description": "the org"},
    "IdempotencyKey": {
        "name": idempotency.HEADER,
        "in": "header",
        "description": "makes a repeat within 24 hours safe: it gets the same answer and changes "
        "nothing",
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "pattern": "^[!-~]([ -~]*[!-~])?$",
        },
    },
    "RequestId": {
        "name": request_id.HEADER,
        "in": "header",
        "description": "comes back with the answer and is in the log, if it has at most 128 "
        "letters, digits, dots, dashes and underscores; else another is made",
        "schema": {"type": "string"},
    },
}
OF_ANSWERS: Final[JsonSchema] = {
    request_id.HEADER: {
        "required": True,
        "description": "the id of the request, in the log too",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "Idempotency-Replayed": {
        "description": "this is the answer to an earlier request with the same idempotency key",
        "schema": {"type": "string", "const": "true"},
    },
    "Retry-After": {
        "required": True,
        "description": "seconds to wait before the next try",
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {
        "required": True,
        "description": "how to send a key",
        "schema": {"type": "string"},
    },
    "X-RateLimit-Limit": {
        "description": "requests that this key may make at once; where there is a limit",
        "schema": {"type": "integer"},
    },
    "X-RateLimit-Remaining": {
        "description": "how many of them are left",
        "schema": {"type": "integer"},
    },
    "X-RateLimit-Reset": {
        "description": "when all of them are there again, in seconds since 1970",
        "schema": {"type": "integer"},
    },
}
