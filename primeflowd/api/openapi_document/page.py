"""The OpenAPI document as a page for people: plain HTML that needs no script. Pure.

It knows as much of OpenAPI as our own document uses (openapi.py), and escapes whatever it takes
from there.
"""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

Json = Mapping[str, Any]

_LIMITS: Final = (
    ("minimum", "at least {}"),
    ("maximum", "at most {}"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {}"),
    ("maxItems", "at most {}"),
    ("default", "{} where it is absent"),
)


def render(document: Json, style: str) -> str:
    """The page. `style`: where its style sheet is."""
    return "\n".join(_page(document, style))


def _page(document: Json, style: str) -> Iterator[str]:
    info = document["info"]
    title = f"{escape(info['title'])} API"
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{title}</title>\n<link rel="stylesheet" href="{escape(style)}">\n</head>\n<body>'
    )
    yield '<a class="skip" href="#main">To the content</a>'
    yield f"<header>\n<h1>{title} <small>{escape(info['version'])}</small></h1>"
    yield f"<p>{escape(info['summary'])}. For programs: "
    yield '<a href="openapi.json">openapi.json</a>, OpenAPI 3.1.</p>\n</header>'
    groups = {
        tag["name"]: [each for each in _operations(document) if tag["name"] in each[2]["tags"]]
        for tag in document["tags"]
    }
    yield from _contents(groups)
    yield '<main id="main">'
    yield from (f"<p>{escape(part)}</p>" for part in info["description"].split("\n\n"))
    for tag in document["tags"]:
        yield f'<section aria-labelledby="{_slug(tag["name"])}">'
        yield f'<h2 id="{_slug(tag["name"])}">{escape(tag["name"])}</h2>'
        yield f"<p>{escape(tag['description'])}</p>"
        for path, method, operation in groups[tag["name"]]:
            yield from _operation(document, path, method, operation)
        yield "</section>"
    yield from _refusals(document)
    yield from _schemas(document)
    yield "</main>\n</body>\n</html>"


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def _contents(groups: Mapping[str, list[tuple[str, str, Json]]]) -> Iterator[str]:
    yield '<nav aria-label="Contents">'
    for tag, operations in groups.items():
        yield f'<p><a href="#{_slug(tag)}">{escape(tag)}</a></p>\n<ul>'
        for path, method, operation in operations:
            yield (
                f'<li><a href="#{operation["operationId"]}">{_method(method)} '
                f"{escape(operation['summary'])}</a><span>{escape(path)}</span></li>"
            )
        yield "</ul>"
    yield '<p><a href="#refusals">Refusals</a></p>\n<p><a href="#schemas">Objects</a></p>\n</nav>'


def _operation(document: Json, path: str, method: str, operation: Json) -> Iterator[str]:
    name = operation["operationId"]
    yield f'<article id="{name}">\n<h3>{_method(method)} <code>{_breakable(path)}</code></h3>'
    yield f"<p><strong>{escape(operation['summary'])}.</strong> "
    yield f"{escape(operation.get('description', ''))}</p>"
    scopes = [
        scope for each in operation["security"][:1] for scopes in each.values() for scope in scopes
    ]
    needs = f"Needs the scope <code>{escape(scopes[0])}</code>." if scopes else "Needs no key."
    yield f'<p class="needs">{needs} <code>{name}</code></p>'
    parameters = [_resolved(document, each) for each in operation["parameters"]]
    yield "<h4>Parameters</h4>\n<dl>"
    for each in parameters:
        where = f"in the {each['in']}" + (", required" if each.get("required") else "")
        yield from _field(each["name"], each["schema"], each.get("description", ""), where)
    yield "</dl>"
    if "requestBody" in operation:
        body = operation["requestBody"]
        content = body["content"]["application/json"]
        required = "" if body["required"] else " It may be left out."
        yield f"<h4>Body</h4>\n<p>{_type(content['schema'])}.{required}</p>"
        yield from _examples(content)
    yield from _answers(operation)
    yield "</article>"


def _answers(operation: Json) -> Iterator[str]:
    yield "<h4>Answers</h4>\n<dl>"
    refusals = []
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            refusals.append(f'<a href="#refusal-{status}">{status}</a>')
            continue
        contents = answer.get("content", {})
        kinds = " or ".join(_type(content["schema"]) for content in contents.values())
        yield f"<dt><code>{status}</code> {kinds}</dt>\n<dd>{escape(answer['description'])}"
        for content in contents.values():
            yield from _examples(content)
        yield "</dd>"
    yield f"<dt>{' '.join(refusals)}</dt>\n<dd>refusals</dd>\n</dl>"


def _refusals(document: Json) -> Iterator[str]:
    yield '<section aria-labelledby="refusals">\n<h2 id="refusals">Refusals</h2>\n<dl>'
    for status, answer in document["components"]["responses"].items():
        yield f'<dt id="refusal-{status}"><code>{status}</code></dt>'
        yield f"<dd>{escape(answer['description'])}"
        yield from _examples(answer["content"]["application/json"])
        yield "</dd>"
    yield "</dl>\n</section>"


def _schemas(document: Json) -> Iterator[str]:
    yield '<section aria-labelledby="schemas">\n<h2 id="schemas">Objects</h2>'
    for name, schema in document["components"]["schemas"].items():
        yield f'<article id="schema-{name}">\n<h3>{name}</h3>'
        yield f"<p>{escape(schema['description'])}</p>\n<dl>"
        required = schema.get("required", ())
        for field, of in schema.get("properties", {}).items():
            there = "" if field in required else "optional"
            yield from _field(field, of, of.get("description", ""), there)
        yield "</dl>\n</article>"
    yield "</section>"


def _field(name: str, schema: Json, description: str, where: str) -> Iterator[str]:
    told = [escape(description)] if description else []
    told += _limits(schema)
    yield f"<dt><code>{escape(name)}</code> <span>{_type(schema)}</span> <em>{where}</em></dt>"
    yield f"<dd>{'; '.join(told)}</dd>"


def _limits(schema: Json) -> list[str]:
    schemas = [schema, *(each for each in schema.get("anyOf", ()) if each != {"type": "null"})]
    return [
        escape(said.format(each[key])) for each in schemas for key, said in _LIMITS if key in each
    ]


def _type(schema: Json) -> str:
    """What values there may be, as HTML."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " ".join(f"<code>{escape(each)}</code>" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type(schema['items'])}"
    if "results" in schema.get("properties", ()):
        return f"results: {_type(schema['properties']['results'])}"
    if "format" in schema:
        return escape(f"{schema['type']}, {schema['format']}")
    return escape(schema.get("type", "any JSON"))


def _examples(content: Json) -> Iterator[str]:
    for name, example in content.get("examples", {}).items():
        shown = json.dumps(example["value"], indent=2, ensure_ascii=False)
        yield (
            f"<details><summary>Example: {escape(name)}</summary>"
            f'<pre tabindex="0"><code>{escape(shown)}</code></pre></details>'
        )


def _resolved(document: Json, thing: Json) -> Json:
    """A component that is only referred to."""
    if "$ref" not in thing:
        return thing
    found: Any = document
    for part in thing["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _method(method: str) -> str:
    return f'<b class="{method.lower()}">{method}</b>'


def _breakable(path: str) -> str:
    return escape(path).replace("/", "/<wbr>")


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")
