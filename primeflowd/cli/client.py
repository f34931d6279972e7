"""Where commands ask the running daemon's API: its address, the key, and what it refuses.

Whatever is refused, or keeps an answer from coming, is an OperatorError: one line, exit code 1.
Waits for at most 30 s at a time. Nothing is sent twice, but for what was refused only because it
has to name the org (contract 2.3): the key's own is named then.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from urllib.parse import urlsplit

import click
import httpx
import msgspec

from primeflowd import __version__
from primeflowd.access_keys import looks_like_key
from primeflowd.api.auth import ORG_HEADERS
from primeflowd.cli.options import config_option, load_bind
from primeflowd.config import parse_bind
from primeflowd.errors import ConfigError, OperatorError

P = ParamSpec("P")
T = TypeVar("T")

_PATIENCE: Final = 30.0
_PAGE: Final = 500
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is listened on


class Page(msgspec.Struct, frozen=True):
    """A page of a list (contract 2.9), its rows as they came."""

    items: list[msgspec.Raw]
    next: str | None


class Api:
    """The API of one daemon, for one key and one org.

    Attributes:
        url: where it is, without a final slash.
    """

    def __init__(self, url: str, key: str, org: str | None, *, by_proxy: bool) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}", "User-Agent": f"primeflowd/{__version__}"}
        if org is not None:
            # Bytes: an org's name need not be ASCII.
            headers[ORG_HEADERS[0]] = org
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        # A daemon of this machine is not reached by way of a proxy that the environment names.
        self._client = httpx.Client(headers=encoded, timeout=_PATIENCE, trust_env=by_proxy)

    def get(self, path: str, **query: object) -> bytes:
        """The body of the answer; of the query, what is None is left out."""
        return self._ask("GET", path, query, None)

    def post(self, path: str, body: Mapping[str, object] | None = None) -> bytes:
        return self._ask("POST", path, {}, {} if body is None else body)

    def patch(self, path: str, body: Mapping[str, object], **query: object) -> bytes:
        return self._ask("PATCH", path, query, body)

    def delete(self, path: str, **query: object) -> bytes:
        return self._ask("DELETE", path, query, None)

    def rows(self, path: str, limit: int, **query: object) -> list[bytes]:
        """The first `limit` rows of a list as they came, from as many pages as they take."""
        found: list[bytes] = []
        cursor = None
        while len(found) < limit:
            size = min(_PAGE, limit - len(found))
            page = _page(self.get(path, **query, limit=size, cursor=cursor))
            found += map(bytes, page.items)
            cursor = page.next
            if cursor is None:
                break
        return found

    def close(self) -> None:
        self._client.close()

    def _ask(self, method: str, path: str, query: Mapping[str, object], body: object) -> bytes:
        answer = self._request(method, path, query, body)
        if (own := _org_to_name(answer)) is not None:
            self._client.headers[ORG_HEADERS[0]] = own
            answer = self._request(method, path, query, body)
        if not answer.is_success:
            raise OperatorError(_refusal(self.url, answer))
        return answer.content

    def _request(
        self, method: str, path: str, query: Mapping[str, object], body: object
    ) -> httpx.Response:
        try:
            return self._client.request(
                method,
                self.url + path,
                params={name: str(value) for name, value in query.items() if value is not None},
                json=body,
            )
        except httpx.TimeoutException as error:
            raise OperatorError(f"{self.url}: no answer within {_PATIENCE:g} s") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise OperatorError(
                f"{self.url}: the daemon's API cannot be reached: {error}; is it running? --url "
                "names another address"
            ) from error


def with_api(command: Callable[Concatenate[Api, P], None]) -> Callable[..., None]:
    """Give a command the options that say which API is meant, and that API."""

    @click.option("--url", envvar="PRIMEFLOWD_API_URL", help="Of the API; else [api] bind.")
    @click.option(
        "--key", envvar="PRIMEFLOWD_API_KEY", help="API key; better in $PRIMEFLOWD_API_KEY."
    )
    @click.option(
        "--key-file",
        metavar="FILE",
        envvar="PRIMEFLOWD_API_KEY_FILE",
        type=click.Path(path_type=Path),
        help="File with the API key.",
    )
    @click.option("--org", envvar="PRIMEFLOWD_ORG", help="Org it is about; else the key's own.")
    @config_option
    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        api = _open(*(options.pop(name) for name in ("url", "key", "key_file", "org", "path")))
        try:
            command(api, *args, **options)
        finally:
            api.close()

    return wrapped


def decoded(body: bytes) -> Any:
    """An answer's JSON as values."""
    return _decode(body, object)


def _page(body: bytes) -> Page:
    return _decode(body, Page)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise OperatorError(f"the answer is not a primeflowd's: {error}") from error


def _open(
    url: str | None, key: str | None, key_file: Path | None, org: str | None, config: Path | None
) -> Api:
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise OperatorError(f"--url: expected one as http://127.0.0.1:8081, not {url!r}")
    plain = _key(key, key_file)
    if org is not None and (not org or not org.isprintable()):
        raise OperatorError("--org: expected 1 to 128 printable characters")
    place = _configured(config) if url is None else url.rstrip("/")
    return Api(place, plain, org, by_proxy=url is not None)


def _key(given: str | None, file: Path | None) -> str:
    if given is None and file is None:
        raise OperatorError(
            "an API key is needed: --key-file FILE or $PRIMEFLOWD_API_KEY; primeflowd keys create "
            "makes one"
        )
    if given is None and file is not None:
        try:
            given = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise OperatorError(f"{file}: cannot be read: {reason}") from error
    assert given is not None
    if not looks_like_key(given.strip()):
        # Its text stays out of the message: it may be another secret, in the wrong place.
        raise OperatorError("that is no API key: one is pfk_ and 40 letters and digits")
    return given.strip()


def _configured(config: Path | None) -> str:
    try:
        host, port = parse_bind(load_bind(config))
    except ConfigError as error:
        raise OperatorError(
            f"{error}; no daemon was asked: --url names it without a file"
        ) from error
    if not port:
        raise OperatorError("[api] bind leaves the port to the system: name the address by --url")
    host = _ANY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Problem(msgspec.Struct, frozen=True):
    """What the API refuses with (contract 2.5)."""

    code: str
    message: str
    details: dict[str, str] = msgspec.field(default_factory=dict)


def _problem(answer: httpx.Response) -> Problem | None:
    """None: a proxy's answer, say."""
    try:
        return msgspec.json.decode(answer.content, type=Problem)
    except msgspec.MsgspecError:
        return None


def _org_to_name(answer: httpx.Response) -> str | None:
    """The key's own org, where the request was refused for not naming it."""
    if answer.status_code != 400 or (problem := _problem(answer)) is None:
        return None
    return problem.details.get("org_id") if problem.code == "org_id_required" else None


def _refusal(url: str, answer: httpx.Response) -> str:
    problem = _problem(answer)
    if problem is None:
        return f"{url}: answered {answer.status_code}, and not as a primeflowd does"
    message = problem.message
    if problem.code == "org_id_required":
        message = "name the org, by --org or $PRIMEFLOWD_ORG"
    request = answer.headers.get("X-Request-Id", "-")
    return f"{message} ({answer.status_code} {problem.code}, request {request})"
