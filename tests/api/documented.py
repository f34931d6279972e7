"""Answers compared with what the OpenAPI document says of them."""

import json
import re
from functools import cache
from typing import Any

import httpx
import jsonschema_rs

from primeflowd.api.openapi_document.document import document

_BODILESS = (204, 304)


def check(method: str, path: str, response: httpx.Response) -> None:
    """That the document has this answer to such a request, if it has such requests.

    Stricter than the document is for clients: an answer may not have fields that it does not name.

    Raises:
        AssertionError: it has not, or the answer is not as the document has it.
    """
    template = next((known for known, pattern in _paths() if pattern.fullmatch(path)), "")
    operation = document()["paths"].get(template, {}).get(method.lower())
    if operation is None:
        return
    said = f"{method} {template} -> {response.status_code}"
    assert str(response.status_code) in operation["responses"], f"{said} is not documented"
    answer = resolved(operation["responses"][str(response.status_code)])
    for name, header in answer.get("headers", {}).items():
        assert name in response.headers or not resolved(header).get("required"), f"{said}: {name}"
    kind = response.headers.get("content-type", "").partition(";")[0]
    content = answer.get("content", {})
    assert (kind in content) if content else (not kind and not response.content), said
    if kind == "application/json":
        problems = [
            str(each)
            for each in _validator(method, template, response.status_code).iter_errors(
                response.json()
            )
        ]
        assert not problems, f"{said}: {problems}"


def validator_of(schema: Any, *, strict: bool = False) -> jsonschema_rs.Draft202012Validator:
    """What validates values of a schema of the document, formats too."""
    components = json.loads(json.dumps(document()["components"]))
    if strict:
        for each in components["schemas"].values():
            each.setdefault("additionalProperties", False)
    return jsonschema_rs.Draft202012Validator(
        {**schema, "components": components}, validate_formats=True
    )


def resolved(thing: Any) -> Any:
    """A component of the document that is only referred to."""
    if "$ref" not in thing:
        return thing
    found: Any = document()
    for part in thing["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


@cache
def _validator(method: str, template: str, status: int) -> jsonschema_rs.Draft202012Validator:
    answer = document()["paths"][template][method.lower()]["responses"][str(status)]
    return validator_of(resolved(answer)["content"]["application/json"]["schema"], strict=True)


@cache
def _paths() -> list[tuple[str, re.Pattern[str]]]:
    """Path templates, those that vary nowhere first."""
    templates = sorted(document()["paths"], key=lambda path: "{" in path)
    return [(each, re.compile(re.sub(r"\{\w+\}", "[^/]+", each))) for each in templates]
