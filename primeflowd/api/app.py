"""The HTTP application: routes, and what every request goes through on its way to a handler.

    request id -> gate -> handler -> answer or envelope -> headers

That is one view per route and one override of the framework's dispatch rather than a stack of
middleware, because the framework's own cost dominates a request. Whatever a request raises, be it
in the framework, becomes an envelope here (contract 2.5); only cancellation passes.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import structlog
import trio
from quart import Response
from quart.globals import request_ctx
from quart.typing import ResponseTypes
from quart.wrappers import Request
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioRequest
from werkzeug.routing import BaseConverter

from primeflowd.api import errors, health, metrics, reference, request_id
from primeflowd.api.answer import Answer
from primeflowd.api.call import Route
from primeflowd.api.gate import Gate
from primeflowd.api.incoming import Fields, Passed
from primeflowd.api.routes import ROUTES
from primeflowd.api.services import Services
from primeflowd.config import Config

log = structlog.get_logger()

OPEN_ROUTES: Final = (*health.OPEN_ROUTES, *metrics.OPEN_ROUTES, *reference.OPEN_ROUTES)
"""What is answered without one."""

_JSON: Final = "application/json"


# The last parts of paths that vary nowhere, such as `bulk`.
_WORDS: Final = "|".join(
    sorted({route.path.rpartition("/")[2] for route in ROUTES if "<" not in route.path})
)


class _Identifier(BaseConverter):
    """A part of a path that varies. What another route has there is none: to GET
    `/v1/batches/bulk` is to use a wrong method, not to ask for a batch."""

    regex = rf"(?!(?:{_WORDS})$)[^/]+"


class _Request(TrioRequest):
    """A request as the gate takes it: see incoming.Incoming."""

    answer_headers: errors.Headers = ()
    passed = None
    # The framework knows, but does not say.
    arrived = None

    def remember(self, passed: Passed) -> None:
        """Not worth it, beside the framework."""


class App(QuartTrio):
    """The application.

    Attributes:
        gate: what its requests go through; others that come by another way shall go through the
            same one.
    """

    request_class = _Request
    gate: Gate

    def reconfigure(self, config: Config) -> None:
        """Go by `config` from the next request on."""
        # A backstop for what arrives while no handler reads; body.py has the limit of each
        # endpoint.
        self.config["MAX_CONTENT_LENGTH"] = max(config.api.max_body, config.api.max_bulk_body)
        self.gate.reconfigure(config)

    async def handle_request(self, request: Request) -> ResponseTypes:
        chosen = request_id.choose(request.headers.get(request_id.HEADER))
        # Each request has a task, and with it a context, of its own: nothing to unbind.
        structlog.contextvars.bind_contextvars(request_id=chosen)
        tracing = self.gate.tracing
        traced = None if tracing is None else tracing.begin(request.headers)
        try:
            response = await super().handle_request(request)
        except Exception as error:  # noqa: BLE001 - the framework failed before it got to a view
            response = _response(errors.answer_to(error))
        except trio.Cancelled:
            if traced is not None:
                traced.end(request.method, _route(request), None, chosen)
            raise
        for name, value in cast("_Request", request).answer_headers:
            response.headers[name] = value
        response.headers[request_id.HEADER] = chosen
        route = _route(request)
        if traced is not None:
            traced.end(request.method, route, response.status_code, chosen)
        self.gate.requests.count(request.method, route, response.status_code)
        log.debug("answered", method=request.method, path=request.path, status=response.status_code)
        return response

    async def handle_user_exception(self, error: BaseException) -> Response:
        return _response(errors.answer_to(error))

    async def handle_exception(self, error: BaseException) -> Response:
        return _response(errors.answer_to(error))

    async def make_default_options_response(self) -> Response:
        adapter = request_ctx.url_adapter
        assert adapter is not None
        methods = ", ".join(sorted(adapter.allowed_methods()))
        return _response(Answer(204, headers=(("Allow", methods),)))


def _route(request: Request) -> str | None:
    return request.url_rule.rule if request.url_rule is not None else None


def create_app(services: Services) -> App:
    """The application over these services; it serves nothing by itself."""
    app = App("primeflowd.api", static_folder=None)
    # Else `//v1/batches` is answered with a redirect, in HTML.
    app.url_map.merge_slashes = False
    app.url_map.converters["default"] = _Identifier
    app.gate = Gate(services)
    app.reconfigure(services.config)
    for route in ROUTES:
        name = f"{route.method} {route.path}".replace(".", "_")
        app.add_url_rule(route.path, name, _view(app.gate, route), methods=[route.method])
    for path, answer in OPEN_ROUTES:
        app.add_url_rule(path, path, _open_view(services, answer), methods=["GET"])
    return app


def _view(gate: Gate, route: Route) -> Callable[..., Awaitable[Response]]:
    """A view function of the framework that leads to the route's handler."""

    async def view(**names: Any) -> Response:
        incoming = cast("_Request", request_ctx.request)
        return _response(await gate.answer(route, incoming, names))

    return view


def _open_view(
    services: Services, answer: Callable[[Services, Fields], Answer]
) -> Callable[[], Awaitable[Response]]:
    async def view() -> Response:
        return _response(answer(services, request_ctx.request.headers))

    return view


def _response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status, content_type=_JSON)
    if not answer.body:
        del response.headers["Content-Type"]
        if answer.status == 204:
            # RFC 9110: a 204 has neither.
            del response.headers["Content-Length"]
    for name, value in answer.headers:
        response.headers[name] = value
    return response
