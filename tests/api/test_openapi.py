"""`/openapi.json` and `/docs`: that they are whole, and say what there is (contract section 8)."""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import msgspec
import pytest
import trio

from primeflowd.api import app, reference, routes
from primeflowd.api.openapi_document.body_rules import RULES
from primeflowd.api.openapi_document.document import OPERATIONS, document
from primeflowd.api.openapi_document.page import render
from tests.api import documented
from tests.api.harness import Api
from tests.api.wire import SERVERS, Serve, converse, replies, serving

VOID = {"meta", "link", "wbr"}


def operations() -> Iterator[tuple[str, Any]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def nodes(thing: Any) -> Iterator[Any]:
    yield thing
    if isinstance(thing, dict | list):
        for each in thing.values() if isinstance(thing, dict) else thing:
            yield from nodes(each)


def test_every_route_is_in_the_document_and_nothing_else_is() -> None:
    """8: one operation for each route, named once."""
    served = {
        f"{each.method} {each.path}".replace("<", "{").replace(">", "}") for each in routes.ROUTES
    }
    served |= {f"GET {path}" for path, _ in app.OPEN_ROUTES if not path.startswith("/docs")}
    assert {name for name, _ in operations()} == served
    assert set(OPERATIONS) == {route.handler for route in routes.ROUTES}
    names = [operation["operationId"] for _, operation in operations()]
    assert len(set(names)) == len(names)


def test_schemas_are_schemas_and_references_lead_somewhere() -> None:
    """8: JSON Schema 2020-12, which is the dialect of OpenAPI 3.1."""
    assert document()["openapi"] == "3.1.0"
    for name, schema in document()["components"]["schemas"].items():
        jsonschema_rs.meta.validate(schema)
        assert name.isidentifier()
        assert schema["description"]
    for node in nodes(document()):
        if isinstance(node, dict) and isinstance(node.get("$ref"), str):
            assert documented.resolved(node)


def test_the_document_holds_nothing_but_json() -> None:
    """8: what is served is what is checked here."""
    assert json.loads(reference.openapi().body) == document()
    text = reference.openapi().body.decode()
    assert "contract" not in text, "that is for whoever works on it"


def test_rules_are_about_fields_that_there_are() -> None:
    """8: a rule for a field that was renamed would be dropped in silence."""
    for kind, field in RULES:
        assert issubclass(kind, msgspec.Struct)
        assert field in ("", *kind.__struct_encode_fields__), f"{kind.__name__}.{field}"


def test_examples_are_what_they_stand_beside() -> None:
    """8: bodies of requests, answers and refusals; one for each request with a body."""
    checked = 0
    for name, operation in operations():
        contents = [*operation.get("requestBody", {}).get("content", {}).values()]
        assert all(content["examples"] for content in contents), name
        for answer in operation["responses"].values():
            answers = documented.resolved(answer).get("content", {}).values()
            assert all("examples" in each for each in answers) or not operation["security"], name
            contents += answers
        for content in contents:
            validator = documented.validator_of(content["schema"], strict=True)
            for example in content.get("examples", {}).values():
                validator.validate(example["value"])
                checked += 1
    assert checked > 100


@pytest.mark.parametrize("problem", ["status", "field", "type", "header"])
async def test_an_answer_that_is_not_documented_is_found(api: Api, problem: str) -> None:
    """8: what compares the answers of all tests with the document can fail."""
    response = await api.get("/v1/batches")
    documented.check("GET", "/v1/batches", response)
    if problem == "status":
        response.status_code = 418
    elif problem == "header":
        del response.headers["x-request-id"]
    else:
        response.json = lambda: {  # type: ignore[assignment,misc]  # an answer that never was
            "field": {"items": [], "next": None, "more": 1},
            "type": {"items": [], "next": 1},
        }[problem]
    with pytest.raises(AssertionError):
        documented.check("GET", "/v1/batches", response)


@pytest.mark.parametrize("server", SERVERS)
async def test_served_without_a_key(api: Api, server: str) -> None:
    """8: by both servers, the same bytes each time."""
    serve: Serve = SERVERS[server]
    for path, kind in (
        ("/openapi.json", "application/json"),
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/style.css", "text/css; charset=utf-8"),
    ):
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        async with serving(serve, api) as (address, _):
            with trio.fail_after(10):
                [first] = replies(await converse(address, request))
                [second] = replies(await converse(address, request))
        assert (first.status, first.headers["content-type"]) == (200, kind)
        assert first.headers["x-request-id"]
        assert first.body == second.body
        if path != "/openapi.json":
            assert first.headers["content-security-policy"].startswith("default-src 'none';")


def test_both_are_made_once() -> None:
    """8: not anew for each request."""
    assert reference.openapi() is reference.openapi()
    assert reference.page() is reference.page()


class Page(HTMLParser):
    """What a page consists of; fails where its elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.kinds: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "style"
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src"):
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_stands_alone() -> None:
    """8: every operation and object is on it, and it needs nothing from anywhere else."""
    page = Page(reference.page().body.decode())
    assert len(set(page.ids)) == len(page.ids)
    for name, operation in operations():
        assert operation["operationId"] in page.ids, name
    for name in document()["components"]["schemas"]:
        assert f"schema-{name}" in page.ids
    assert {link for link in page.links if not link.startswith("#")} == {
        "openapi.json",
        "docs/style.css",
    }
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not page.kinds & {"script", "img", "iframe", "form", "object", "svg"}
    style = reference.style().body.decode()
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_escapes_what_the_document_says() -> None:
    """8: a description is text."""
    changed = json.loads(json.dumps(document()).replace("Register a batch", "<script>&amp;"))
    page = Page(render(changed, "x.css"))
    assert "script" not in page.kinds
    assert "<script>&amp;" in page.text
