"""Logging: one line an event, and no secret on it (contract 2.7, 6.1)."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from primeflowd import config, log

API_KEY = "pfk_" + "0a" * 20
PLAIN_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw5bZ0Bd3kq1E="

Format = Literal["logfmt", "json"]
Configure = Callable[..., io.StringIO]


@pytest.fixture
def configure() -> Iterator[Configure]:
    """`log.configure` onto a buffer; afterwards everything global is as it was."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers, root.level, logging.raiseExceptions

    def onto_buffer(form: Format = "json", level: Any = "info") -> io.StringIO:
        stream = io.StringIO()
        log.configure(config.Log(format=form, level=level), stream)
        return stream

    yield onto_buffer
    root.handlers, logging.raiseExceptions = handlers, raising
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_has_time_level_event_then_fields(configure: Configure) -> None:
    stream = configure("json")
    structlog.get_logger().info("daemon_ready", url="http://127.0.0.1:1", port=1, none=None)
    [event] = lines(stream)
    assert list(event) == ["timestamp", "level", "event", "url", "port", "none"]
    assert (event["level"], event["event"], event["port"]) == ("info", "daemon_ready", 1)
    assert event["timestamp"].endswith("Z")
    assert "T" in event["timestamp"]


def test_logfmt_line_quotes_only_what_needs_it(configure: Configure) -> None:
    stream = configure("logfmt")
    structlog.get_logger().warning("a b", plain="x/y:1", quoted='say "hi"', on=True, none=None)
    text = stream.getvalue()
    assert text.startswith("timestamp=2")
    assert ' level=warning event="a b" ' in text
    assert text.endswith(' plain=x/y:1 quoted="say \\"hi\\"" on=true none=\n')


def test_context_is_on_every_line(configure: Configure) -> None:
    """2.7: the request id is in the logs, those of libraries too."""
    stream = configure()
    structlog.contextvars.bind_contextvars(request_id="r-1")
    structlog.get_logger().info("ours")
    logging.getLogger("hypercorn.error").warning("theirs %d", 7)
    ours, theirs = lines(stream)
    assert ours["request_id"] == theirs["request_id"] == "r-1"
    assert (theirs["event"], theirs["logger"], theirs["level"]) == (
        "theirs 7",
        "hypercorn.error",
        "warning",
    )


def test_libraries_are_heard_from_warning_up(configure: Configure) -> None:
    stream = configure(level="debug")
    logging.getLogger("hypercorn.error").info("Running on ...")
    assert stream.getvalue() == ""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    [event] = lines(stream)
    assert event["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in event["event"]


def test_less_than_the_level_is_dropped(configure: Configure) -> None:
    stream = configure(level="warning")
    structlog.get_logger().info("unheard")
    structlog.get_logger().error("heard")
    assert [event["event"] for event in lines(stream)] == ["heard"]


def test_disabled_debug_does_no_work(configure: Configure) -> None:
    """Hot loops log at debug: no field is looked at."""
    stream = configure()

    class Untouchable:
        def __repr__(self) -> str:
            raise AssertionError("rendered")

    structlog.get_logger().debug("tick", field=Untouchable())
    assert stream.getvalue() == ""


@pytest.mark.parametrize("form", ["json", "logfmt"])
def test_traceback_is_one_line(configure: Configure, form: Format) -> None:
    stream = configure(form)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        structlog.get_logger().exception("crashed")
        logging.getLogger("library").exception("failed")
    ours, theirs = stream.getvalue().splitlines()
    for line in (ours, theirs):
        assert "Traceback (most recent call last):\\n" in line
        assert "ValueError: first\\nsecond" in line


@pytest.mark.parametrize("form", ["json", "logfmt"])
@pytest.mark.parametrize(
    "name", ["secret", "plain_secret", "key", "authorization", "payload", "body"]
)
def test_dangerous_fields_are_hidden(configure: Configure, form: Format, name: str) -> None:
    """6.1: a secret is never in a log."""
    stream = configure(form)
    structlog.get_logger().info("slip", **{name: "hush", "headers": {name.title(): "hush"}})
    assert "hush" not in stream.getvalue()
    assert "[hidden]" in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "logfmt"])
@pytest.mark.parametrize("secret", [API_KEY, PLAIN_SECRET])
def test_secrets_are_hidden_wherever_they_stand(
    configure: Configure, form: Format, secret: str
) -> None:
    """2.1, 6.1: in an innocent field, in a traceback after a newline, in a library's message."""
    stream = configure(form)
    structlog.get_logger().info("slip", value=f"x {secret}", deep=[{"a": secret}])
    try:
        raise ValueError(f"refused:\n{secret}")
    except ValueError:
        structlog.get_logger().exception("slip")
    logging.getLogger("library").error("got %s", secret)
    assert len(stream.getvalue().splitlines()) == 3
    assert secret[8:] not in stream.getvalue()


def test_prefixes_that_tell_keys_apart_are_shown(configure: Configure) -> None:
    stream = configure()
    structlog.get_logger().info("key_made", key_prefix=API_KEY[:10])
    assert lines(stream)[0]["key_prefix"] == API_KEY[:10]


def test_bytes_are_shown_as_their_length(configure: Configure) -> None:
    stream = configure()
    structlog.get_logger().info("sent", raw=b"frozen bytes")
    assert lines(stream)[0]["raw"] == "<12 bytes>"


@given(text=st.text(), form=st.sampled_from(["json", "logfmt"]))
def test_no_text_breaks_a_line(text: str, form: Format) -> None:
    """An event is one line, whatever a client put into a value."""
    render = log._json if form == "json" else log._logfmt
    line = render(None, "info", {"level": "info", "event": text, "field": text})
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    if form == "json":
        assert json.loads(line)["field"] == text


def test_reader_that_is_gone_does_not_matter(configure: Configure) -> None:
    stream = configure()
    stream.close()
    structlog.get_logger().info("nobody listens")
    logging.getLogger("library").error("nobody listens")


def test_another_level_holds_for_loggers_of_before(configure: Configure) -> None:
    """8: and for those of libraries; what was bound stays bound."""
    stream = configure("json", "warning")
    logger, bound = structlog.get_logger(), structlog.get_logger().bind(part="door")
    logger.info("a")
    bound.info("b")
    log.set_level(config.Log(format="json", level="debug"))
    logger.debug("c")
    bound.debug("d")
    log.set_level(config.Log(format="json", level="error"))
    logger.warning("e")
    bound.warning("f")
    logging.getLogger("hypercorn.error").warning("g")
    structlog.get_logger().warning("h")
    bound.error("i")
    assert [(line["event"], line.get("part")) for line in lines(stream)] == [
        ("c", None),
        ("d", "door"),
        ("i", "door"),
    ]


def test_another_level_is_that_of_the_last_configuration(configure: Configure) -> None:
    first = configure("json", "info")
    logger = structlog.get_logger()
    logger.info("a")
    configure("json", "info")
    log.set_level(config.Log(level="error"))
    logger.info("b")
    assert [line["event"] for line in lines(first)] == ["a", "b"]
