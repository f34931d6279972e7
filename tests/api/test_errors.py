"""One envelope for everything that is not a success (contract 2.5), and request ids (2.7)."""

from collections.abc import Callable
from typing import TypeVar

import outcome
import pytest
import structlog.testing

from primeflowd.api.errors import TYPES, answer_to
from primeflowd.errors import Draining, Overloaded, StorageUnavailable
from primeflowd.unit import Unit
from tests.api.harness import Api, problem

T = TypeVar("T")

BATCHES = "/v1/batches"


class FailingIntake:
    """An intake that raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def perform(self, operation: Callable[[Unit], T]) -> T:
        raise self._error

    def submit(
        self, operation: Callable[[Unit], T], on_end: Callable[[outcome.Maybe[T]], None]
    ) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [
        (Overloaded("full", retry_after=3), "overloaded", "3"),
        (Draining("bye", retry_after=2), "draining", "2"),
        (StorageUnavailable("disk /dev/sda1 is full"), "storage_unavailable", "1"),
    ],
)
async def test_overload_drain_and_a_store_that_is_down(
    api: Api, error: Exception, code: str, retry_after: str
) -> None:
    """2.5: 503 with Retry-After; what the storage says of itself is the operator's."""
    api.serve(api.services(intake=FailingIntake(error)))
    response = await api.post(BATCHES, {})
    assert problem(response) == (503, "unavailable", code)
    assert response.headers["retry-after"] == retry_after
    assert "sda1" not in response.text


async def test_a_bug_is_a_500_without_a_traceback_and_one_log_line_with_it(api: Api) -> None:
    """2.5: never a traceback to the client; 2.7: the request id is in the log."""
    api.serve(api.services(intake=FailingIntake(ZeroDivisionError("secret detail"))))
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as logs:
        response = await api.post(BATCHES, {}, headers={"X-Request-Id": "abc"})
    assert problem(response) == (500, "internal_error", "internal_error")
    assert "secret detail" not in response.text
    assert "Traceback" not in response.text
    [line] = [line for line in logs if line["log_level"] == "error"]
    assert isinstance(line["exc_info"], ZeroDivisionError)
    assert line["request_id"] == "abc"


async def test_a_bug_leaves_nothing_on_stdout_or_stderr(
    api: Api, capfd: pytest.CaptureFixture[str]
) -> None:
    """The framework's own handlers must not print beside our log."""
    api.serve(api.services(intake=FailingIntake(ZeroDivisionError())))
    with structlog.testing.capture_logs():
        await api.post(BATCHES, {})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/batches/",
        "//v1/batches",
        "/v1//batches",
        "/V1/batches",
        "/v2/x",
        "/v1/policies/retry/",
        "/static/x",
        "/%00",
        "/%ff",
        "/v1/batches/a/b/c",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_routes(api: Api, method: str, path: str) -> None:
    """2.5: 404 in an envelope, no redirects."""
    assert problem(await api.call(method, path)) == (404, "not_found", "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", BATCHES, {"GET", "HEAD", "OPTIONS", "POST"}),
        ("DELETE", "/v1/policies/retry/list", {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/v1/batches/bulk/completion", {"OPTIONS", "POST"}),
        ("GET", "/v1/batches/bulk", {"OPTIONS", "POST"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
        ("BREW", BATCHES, {"GET", "HEAD", "OPTIONS", "POST"}),
    ],
)
async def test_wrong_methods(api: Api, method: str, path: str, allow: set[str]) -> None:
    """2.5: 405 with Allow."""
    response = await api.call(method, path)
    assert problem(response) == (405, "method_not_allowed", "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == allow


async def test_options_names_the_methods(api: Api) -> None:
    """An answer without a body, and no HTML either."""
    response = await api.call("OPTIONS", BATCHES, key="")
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert not {"content-type", "content-length"} & set(response.headers)


async def test_head_is_a_get_that_is_checked_alike(api: Api) -> None:
    """HEAD needs a key where GET does."""
    assert (await api.call("HEAD", BATCHES)).status_code == 200
    assert (await api.call("HEAD", BATCHES, key="")).status_code == 401


@pytest.mark.parametrize("host", ["", "[", "a b", "\u00e9", "x" * 5000, "a@b", "a/b", ":", "[::1"])
async def test_odd_hosts_break_nothing(api: Api, host: str) -> None:
    """2.5: the Host header plays no part in what is answered."""
    response = await api.client.get(
        BATCHES, headers=[(b"X-Reevit-Key", api.key.encode()), (b"Host", host.encode("latin-1"))]
    )
    if len(host) > 1000:
        assert problem(response) == (400, "invalid_request", "malformed_request")
    else:
        assert response.status_code == 200


async def test_what_no_view_gets_to_see_is_an_envelope_too(api: Api) -> None:
    """2.5: a bug outside any handler."""
    api.app.session_interface = None  # type: ignore[assignment]
    with structlog.testing.capture_logs():
        assert problem(await api.get(BATCHES))[0] == 500


def test_groups_of_one_are_what_is_in_them() -> None:
    """A nursery on the way wraps what passes it."""
    group = ExceptionGroup("", [ExceptionGroup("", [Overloaded("full")])])
    assert answer_to(group).status == 503


def test_what_is_not_ours_to_answer_is_raised() -> None:
    """2.5: only cancellation and the like get no answer."""
    with pytest.raises(KeyboardInterrupt):
        answer_to(KeyboardInterrupt())
    with pytest.raises(BaseExceptionGroup):
        answer_to(BaseExceptionGroup("", [KeyboardInterrupt(), ValueError()]))


def test_every_status_of_the_contract_has_a_type_of_its_own() -> None:
    """2.5."""
    assert set(TYPES) == {400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 500, 503}
    assert len(set(TYPES.values())) == len(TYPES)


@pytest.mark.parametrize("sane", ["a", "A.b_c-9", "x" * 128])
async def test_a_sane_request_id_is_kept(api: Api, sane: str) -> None:
    """2.7: on successes, refusals and unknown routes alike."""
    for path in (BATCHES, "/v1/batches/x", "/nowhere"):
        response = await api.get(path, headers={"X-Request-Id": sane})
        assert response.headers["x-request-id"] == sane


@pytest.mark.parametrize("odd", ["", "x" * 129, "a b", "a\tb", 'a"b', "a=b", "\u00e9"])
async def test_an_odd_request_id_is_replaced(api: Api, odd: str) -> None:
    """2.7, 2.8: by a fresh UUID, a new one each time."""
    raw = [(b"X-Request-Id", odd.encode("latin-1")), (b"X-Reevit-Key", api.key.encode())]
    first = (await api.client.get(BATCHES, headers=raw)).headers["x-request-id"]
    second = (await api.client.get(BATCHES, headers=raw)).headers["x-request-id"]
    assert len(first) == 36
    assert first != second
