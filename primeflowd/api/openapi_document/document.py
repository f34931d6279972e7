"""The OpenAPI 3.1 document of the API, made from the routes and the types that serve it.

Built once, when somebody asks for it first, which takes some ten milliseconds. It is the same for
every node of a version: settings are not in it.
"""

import re
from functools import cache
from typing import Any, Final

from primeflowd import __version__
from primeflowd.api import errors, health
from primeflowd.api.auth import KEY_HEADER
from primeflowd.api.call import Route
from primeflowd.api.openapi_document import access_operations, batch_operations, delivery_operations
from primeflowd.api.openapi_document.body_rules import RULES
from primeflowd.api.openapi_document.examples import ANSWERS, REFUSALS
from primeflowd.api.openapi_document.headers import OF_ANSWERS, OF_REQUESTS
from primeflowd.api.openapi_document.json_schema import Components, JsonSchema
from primeflowd.api.openapi_document.operation import Array, Operation, Operations, Pages, Results
from primeflowd.api.routes import ROUTES

OPERATIONS: Final[Operations] = {
    **batch_operations.OPERATIONS,
    **delivery_operations.OPERATIONS,
    **access_operations.OPERATIONS,
}

_PARAMETER: Final = re.compile(r"<(\w+)>")
_JSON: Final = "application/json"
_TAGS: Final = {
    "/v1/policies": ("Retry policies", "When a callback that failed is tried again."),
    "/v1/batches": ("Batches", "What callbacks are about: registered, ended, redelivered."),
    "/v1/deliveries": ("Deliveries", "Callbacks on their way, and every attempt on record."),
    "/v1/destinations": ("Destinations", "What holds for a host, whoever's callbacks go there."),
    "/v1/callback-secrets": ("Signing secrets", "What callbacks are signed with."),
    "/v1/keys": ("API keys", "Who may do what."),
    "": ("This node", "How the node that answers is."),
}
_ABOUT: Final = """\
Batches come in over HTTP, signed callbacks go out, and everything is on record.

Every request needs an API key, as Bearer token or in X-Reevit-Key, with the scope that the \
operation names. A key belongs to one org; an operator key acts for the org that X-Org-Id names \
(X-Organization-Id is read as well; two that differ are an error). Another org's objects look as \
if they did not exist.

Every answer that is no success is the same envelope: error (its kind), code (for programs, \
stable), message (for people) and sometimes details. That holds too for what is no request of this \
document: an unknown path (404), a method that a path does not have (405, with Allow), and what is \
not HTTP as it should be (400, 431, 501). Bodies are JSON objects in UTF-8, nested at most 100 \
deep, without NaN, infinities or lone surrogates; integers are spelled without a point or an \
exponent."""
_REFUSED: Final = {
    400: "the request is wrong in itself",
    401: "no API key, or none that is valid",
    403: "the key may not do this",
    404: "no such object, or another org's",
    408: "the body did not arrive within a minute",
    409: "the idempotency key was used for another request, or its request is still running",
    413: "the body is larger than the node's configuration allows",
    415: "the body is not sent as application/json",
    422: "the request is fine, but the state of the object refuses it",
    429: "this key makes more requests than it may",
    500: "a bug; the log of the node has its cause",
    503: "overloaded, draining, or without its storage: try again after Retry-After seconds",
}
_DONE: Final = {
    200: "done; or what was asked for",
    201: "made, or changed",
    202: "accepted",
    204: "done",
}
_ALREADY: Final = "it had ended already, and is unchanged"
_LIMITS: Final = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


@cache
def document() -> dict[str, Any]:
    """The whole document, as JSON has it."""
    schemas = Components(RULES)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    for path, operation in _open_operations(schemas).items():
        paths[path] = {"get": operation}
    errors_schema = schemas.of(errors.Envelope)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "primeflowd",
            "version": __version__,
            "summary": "Signed callbacks for batches, durable and on record",
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "servers": [{"url": "/", "description": "the node that serves this"}],
        "tags": [{"name": name, "description": said} for name, said in _TAGS.values()],
        "security": [{"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.schemas,
            "responses": {str(code): _refusal(code, errors_schema) for code in _REFUSED},
            "parameters": OF_REQUESTS,
            "headers": OF_ANSWERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
                "key": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
            },
        },
    }


def _operation(route: Route, schemas: Components) -> JsonSchema:
    operation = OPERATIONS[route.handler]
    changes = route.method != "GET"
    parameters: list[Any] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "format": "uuid"},
        }
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [
        {
            "name": each.name,
            "in": "query",
            "description": each.description,
            **({"required": True} if each.required else {}),
            "schema": each.schema,
        }
        for each in operation.query
    ]
    if route.org != "none" or operation.may_name_org:
        parameters.append(_parameter("NamedOrg" if route.org == "header" else "Org"))
    if changes:
        parameters.append(_parameter("IdempotencyKey"))
    parameters.append(_parameter("RequestId"))
    described: JsonSchema = {
        "operationId": operation.name,
        "tags": [_tag(route.path)],
        **_told(operation.summary, operation.description),
        "parameters": parameters,
        "security": [{"bearer": [route.scope]}, {"key": [route.scope]}],
    }
    if operation.body is not None:
        content: JsonSchema = {"schema": schemas.of(operation.body)}
        if operation.examples:
            content["examples"] = {
                name: {"value": value} for name, value in operation.examples.items()
            }
        described["requestBody"] = {
            "required": operation.needs_body,
            "content": {_JSON: content},
        }
    described["responses"] = {
        **_answers(operation, schemas, changes=changes),
        **{
            str(code): {"$ref": f"#/components/responses/{code}"}
            for code in sorted({*_refusals(route), *operation.refusals})
        },
    }
    return described


def _refusals(route: Route) -> set[int]:
    """The statuses of refusals that every route of this kind can answer with."""
    found = {400, 401, 403, 429, 500, 503}
    if "<" in route.path:
        found.add(404)
    if route.method != "GET":
        found |= {408, 409, 413}
        if route.method != "DELETE":
            found.add(415)
    return found


def _answers(operation: Operation, schemas: Components, *, changes: bool) -> JsonSchema:
    found: JsonSchema = {}
    for status, kind in operation.answers.items():
        headers = ["X-Request-Id", *(["Idempotency-Replayed"] if changes else []), *_LIMITS]
        unchanged = status == 200 and 201 in operation.answers
        answer: JsonSchema = {
            "description": _ALREADY if unchanged else _DONE[status],
            "headers": {name: _header(name) for name in headers},
        }
        if kind is not None:
            answer["content"] = {
                _JSON: {
                    "schema": _answered(kind, schemas),
                    "examples": {"answer": {"value": _example(kind)}},
                }
            }
        if operation.leads_to is not None:
            name, parameter = operation.leads_to
            answer["links"] = {
                name: {"operationId": name, "parameters": {parameter: "$response.body#/id"}}
            }
        found[str(status)] = answer
    return found


def _answered(kind: Any, schemas: Components) -> JsonSchema:
    match kind:
        case Pages(of=of):
            return schemas.page_of(of)
        case Array(of=of):
            return {"type": "array", "items": schemas.of(of)}
        case Results(of=of):
            return {
                "type": "object",
                "required": ["results"],
                "properties": {
                    "results": {
                        "type": "array",
                        "items": {"anyOf": [schemas.of(each) for each in of]},
                    }
                },
            }
    return schemas.of(kind)


def _example(kind: Any) -> Any:
    match kind:
        case Pages(of=of):
            return {"items": [ANSWERS[of]], "next": None}
        case Array(of=of):
            return [ANSWERS[of]]
        case Results(of=of):
            return {"results": [ANSWERS[each] for each in of]}
    return ANSWERS[kind]


def _open_operations(schemas: Components) -> dict[str, JsonSchema]:
    """What takes no key."""
    well = {_JSON: {"schema": schemas.of(health.HealthShape)}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    itself = {_JSON: {"schema": {"type": "object"}}}
    return {
        "/healthz": _open("get_health", "Check that the node is alive", well),
        "/readyz": _open("get_readiness", "Check that the node wants requests", well, 503),
        "/metrics": _open("get_metrics", "Get metrics for Prometheus", text),
        "/openapi.json": _open("get_openapi", "Get this document", itself),
    }


def _open(name: str, summary: str, content: JsonSchema, *refusals: int) -> JsonSchema:
    return {
        "operationId": name,
        "tags": [_tag("")],
        "summary": summary,
        "parameters": [_parameter("RequestId")],
        "security": [],
        "responses": {
            "200": {
                "description": "as it is",
                "headers": {"X-Request-Id": _header("X-Request-Id")},
                "content": content,
            },
            **{str(code): {"$ref": f"#/components/responses/{code}"} for code in (*refusals, 500)},
        },
    }


def _refusal(code: int, schema: JsonSchema) -> JsonSchema:
    headers = {"X-Request-Id": _header("X-Request-Id")}
    if code in (429, 503):
        headers["Retry-After"] = _header("Retry-After")
    if code == 401:
        headers["WWW-Authenticate"] = _header("WWW-Authenticate")
    if code == 429:
        headers |= {name: _header(name) for name in _LIMITS}
    machine, message, details = REFUSALS[code]
    kind = errors.TYPES.get(code, errors.TYPES[400])
    example: JsonSchema = {"error": kind, "code": machine, "message": message}
    if details:
        example["details"] = details
    return {
        "description": _REFUSED[code],
        "headers": headers,
        "content": {_JSON: {"schema": schema, "examples": {machine: {"value": example}}}},
    }


def _told(summary: str, description: str) -> JsonSchema:
    return {"summary": summary, **({"description": description} if description else {})}


def _tag(path: str) -> str:
    return next(tag for start, (tag, _) in _TAGS.items() if path.startswith(start))


def _parameter(name: str) -> JsonSchema:
    return {"$ref": f"#/components/parameters/{name}"}


def _header(name: str) -> JsonSchema:
    return {"$ref": f"#/components/headers/{name}"}
