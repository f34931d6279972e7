"""What tells of the API itself, without a key: `/openapi.json`, and `/docs` to read.

The page is made of the document and stands alone: one style sheet from this package, no script,
nothing from another host, and a policy that lets a browser load nothing else. Both are made when
somebody asks for them first, and kept. Blocks on nothing.
"""

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Final

from primeflowd.api import shapes
from primeflowd.api.answer import Answer
from primeflowd.api.errors import Headers
from primeflowd.api.incoming import Fields
from primeflowd.api.services import Services

STYLE: Final = "docs/style.css"
"""From the page; both may be behind a proxy that puts something before their paths."""

_SAFE: Final[Headers] = (
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


@cache
def openapi() -> Answer:
    """The document."""
    # Here, so that a daemon that nobody asks does not start later for it.
    from primeflowd.api.openapi_document.document import document

    return shapes.answer(200, document())


@cache
def page() -> Answer:
    """The document as a page."""
    from primeflowd.api.openapi_document.document import document
    from primeflowd.api.openapi_document.page import render

    return _text("html", render(document(), STYLE).encode())


@cache
def style() -> Answer:
    """How the page looks."""
    return _text("css", files("primeflowd.api.openapi_document").joinpath("style.css").read_bytes())


def _text(kind: str, body: bytes) -> Answer:
    return Answer(200, body, (("Content-Type", f"text/{kind}; charset=utf-8"), *_SAFE))


def _always(answer: Callable[[], Answer]) -> Callable[[Services, Fields], Answer]:
    return lambda _, __: answer()


OPEN_ROUTES: Final = (
    ("/openapi.json", _always(openapi)),
    ("/docs", _always(page)),
    (f"/{STYLE}", _always(style)),
)
