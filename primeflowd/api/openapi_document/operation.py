"""What the document says of one operation, beyond what its row in the table of routes says."""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias, get_args

import msgspec

from primeflowd.api import cursors
from primeflowd.api.call import Handler
from primeflowd.api.openapi_document.body_rules import INSTANT
from primeflowd.api.openapi_document.body_rules import PLAN as PLAN_RULE
from primeflowd.api.openapi_document.json_schema import JsonSchema


class Pages(msgspec.Struct, frozen=True):
    """The answer is a page of these."""

    of: type


class Array(msgspec.Struct, frozen=True):
    """The answer is a bare array of these."""

    of: type


class Results(msgspec.Struct, frozen=True):
    """The answer has a result for each thing that was sent, of one of these types."""

    of: tuple[type, ...]


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of the query."""

    name: str
    schema: JsonSchema
    description: str
    required: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One route.

    Attributes:
        name: what generated clients call it.
        summary, description: for people who read the document.
        answers: what it answers when it succeeds, by status; None for no body.
        body: of the request, None where it takes none.
        needs_body: whether it must be there.
        examples: requests that succeed, by what they show.
        refusals: statuses of refusals besides those that every route of its kind has.
        may_name_org: X-Org-Id is read, though the row in the table of routes says that it is not.
        leads_to: the operation, and its parameter, that takes the id in the answer; where its name
            does not tell.
    """

    name: str
    summary: str
    description: str = ""
    answers: dict[int, Any]
    body: type | None = None
    needs_body: bool = True
    query: tuple[Parameter, ...] = ()
    examples: dict[str, Any] = {}
    refusals: tuple[int, ...] = ()
    may_name_org: bool = False
    leads_to: tuple[str, str] | None = None


Operations: TypeAlias = Mapping[Handler, Operation]

PAGE: Final = (
    Parameter(
        "limit",
        {
            "type": "integer",
            "minimum": 1,
            "maximum": cursors.MAX_LIMIT,
            "default": cursors.DEFAULT_LIMIT,
        },
        "how many at most",
    ),
    Parameter(
        "cursor",
        {"type": "string", "format": "cursor"},
        "where to go on: the next of the page before",
    ),
)
ITEMS_PAGE: Final = (
    PAGE[0],
    Parameter("cursor", {"type": "string", "format": "item-cursor"}, PAGE[1].description),
)
CREATED: Final = (
    Parameter(
        "created_after", {"type": "string", "format": "date-time", **INSTANT}, "made after this"
    ),
    Parameter(
        "created_before", {"type": "string", "format": "date-time", **INSTANT}, "made before this"
    ),
)
PLAN: Final = Parameter(
    "plan_id", {"type": "string", **PLAN_RULE}, "the plan; empty: the org's own"
)


def one_of(name: str, words: Any, description: str) -> Parameter:
    return Parameter(name, {"type": "string", "enum": list(get_args(words))}, description)
