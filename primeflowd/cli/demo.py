"""`demo`: one callback that fails twice and arrives, before one's eyes.

Everything is real: the daemon and the receiver are processes, the key is made by `keys create`,
the rest goes over HTTP, and the signature is verified with the public standardwebhooks package.
The demo is a test, too: it fails if anything is not as told.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import httpx
import tomli_w
from rich.console import Console
from standardwebhooks import Webhook, WebhookVerificationError

from primeflowd.cli.child import Child
from primeflowd.errors import OperatorError

ORG: Final = "demo"
PLAN: Final = "demo"
ANSWERS: Final = (500, 503, 200)
DELAYS: Final = (1.0, 2.0)
# Some 5 s on an idle machine; a demo that hangs helps nobody.
_PATIENCE: Final = 60.0
_SHOWN_HEADERS: Final = (
    "content-type",
    "user-agent",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "primeflow-signature",
    "primeflow-attempt",
)

_SETTINGS: Final = {
    "api": {"bind": "127.0.0.1:0"},
    "delivery": {"egress": {"allow": ["127.0.0.0/8"]}},
    "log": {"format": "json"},
}

_GOING_ON: Final = """\
Go on with:
  {0} init                    writes ./primeflowd.toml and makes a master key
  {0} keys create --org ORG   makes an API key
  {0} run                     runs the daemon; the README has a tour with curl"""


@click.command()
def demo() -> None:
    """Watch one callback fail twice and arrive, signed, in some five seconds.

    Starts a daemon and a receiver on free ports, in a temporary directory that is deleted in the
    end.
    """
    # Like Ctrl-C: unwinding ends the children, which a plain SIGTERM would leave behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    script = json.dumps([{"status": status} for status in ANSWERS])
    with tempfile.TemporaryDirectory(prefix="primeflowd-demo-") as name:
        config = Path(name) / "primeflowd.toml"
        config.write_text(tomli_w.dumps({"state_directory": name, **_SETTINGS}))
        with (
            Child("receiver", ["primeflowd.testing.receiver", "--script", script]) as receiver,
            Child("daemon", ["primeflowd", "run", "--config", str(config)], "stderr") as daemon,
        ):
            _Story(receiver, daemon, _make_key(config)).tell()


def _make_key(config: Path) -> str:
    words = ["keys", "create", "--org", ORG, "--config", str(config)]
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", "primeflowd", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OperatorError(f"keys create failed: {done.stderr.strip()}")
    return done.stdout.strip()


class _Story:
    """The acts in their order, each shown as it happens."""

    def __init__(self, receiver: Child, daemon: Child, key: str) -> None:
        self._deadline = time.monotonic() + _PATIENCE
        self._receiver = receiver
        self._daemon = daemon
        self._console = Console(highlight=False, soft_wrap=True)
        self._hook = f"http://127.0.0.1:{receiver.line(self._deadline)}/hook"
        self._api = httpx.Client(
            base_url=self._wait_for_daemon(),
            headers={"Authorization": f"Bearer {key}", "X-Org-Id": ORG},
        )
        self._bodies: list[str] = []

    def tell(self) -> None:
        """Tell it all.

        Raises:
            OperatorError: something did not happen as it should.
        """
        with self._api:
            secret = self._set_the_scene()
            batch_id = self._end_a_batch()
            started = time.monotonic()
            for number, status in enumerate(ANSWERS, 1):
                request = self._receiver.line(self._deadline)
                self._show_attempt(number, request, secret, time.monotonic() - started)
                self._show_outcome(number, status, self._delivery(batch_id, number))
            self._check_the_record(self._delivery(batch_id, len(ANSWERS)))
        _expect(self._daemon.terminate() == 0, "the daemon did not drain")
        self._say("[bold]drained[/] on SIGTERM, exit code 0")
        self._say("")
        self._console.print(_GOING_ON.format(_called_as()), markup=False)

    def _wait_for_daemon(self) -> str:
        while True:
            event = self._daemon.line(self._deadline)
            if not isinstance(event, dict):
                raise OperatorError(f"the daemon did not start: {event}")
            if event.get("event") == "daemon_ready":
                return str(event["url"])

    def _set_the_scene(self) -> str:
        """A retry policy and a signing secret; the secret."""
        self._say(
            f"[bold]daemon[/]    {self._api.base_url}  (its database in a temporary directory)"
        )
        self._say(f"[bold]receiver[/]  {self._hook}  (answers {_then(ANSWERS)})")
        delays = [f"{delay:g}s" for delay in DELAYS]
        self._call("POST", "/v1/policies/retry", {"plan_id": PLAN, "delays": delays})
        self._say(f"[bold]policy[/]    plan {PLAN!r}: retry after {_then(delays)}")
        made = self._call("POST", "/v1/callback-secrets", {"label": "demo"})
        self._say(f"[bold]secret[/]    {made['key_prefix']}…  (shown once, kept encrypted)")
        return str(made["plain_secret"])

    def _end_a_batch(self) -> str:
        """Register a batch and complete it; its id."""
        batch = {"plan_id": PLAN, "callback_url": self._hook, "metadata": {"order": 4711}}
        batch_id = str(self._call("POST", "/v1/batches", batch)["id"])
        self._say(f"[bold]batch[/]     {batch_id}  registered …")
        result = {"status": "succeeded", "output": {"rows": 3}}
        self._call("POST", f"/v1/batches/{batch_id}/completion", result)
        self._say("          … and completed: its payload is frozen and its callback on its way")
        return batch_id

    def _show_attempt(
        self, number: int, request: dict[str, Any], secret: str, elapsed: float
    ) -> None:
        headers = {name.lower(): value for name, value in request["headers"]}
        self._bodies.append(request["body"])
        self._say("")
        self._say(
            f"[bold cyan]attempt {number}[/]  after {elapsed:.1f} s: POST {request['target']}"
        )
        for name in _SHOWN_HEADERS:
            self._console.print(f"  {name}: {headers.get(name)}", markup=False, style="dim")
        self._console.print(f"  {request['body']}", markup=False)
        try:
            Webhook(secret).verify(request["body"], headers)
        except WebhookVerificationError as error:
            raise OperatorError(f"the signature of attempt {number} is wrong: {error}") from error
        _expect(headers.get("primeflow-attempt") == str(number), "the attempts are out of order")
        self._say("  [green]signature verified[/] with the standardwebhooks package")

    def _show_outcome(self, number: int, status: int, delivery: dict[str, Any]) -> None:
        attempt = delivery["attempts"][number - 1]
        _expect(attempt["status_code"] == status, f"attempt {number} has the wrong outcome")
        if delivery["next_attempt_at"]:
            rest = f"[yellow]failed[/], next attempt due {delivery['next_attempt_at']}"
        else:
            rest = f"[green]{delivery['status_code']}[/]"
        self._say(f"  answer {status} after {attempt['response_time_ms']} ms: {rest}")

    def _check_the_record(self, delivery: dict[str, Any]) -> None:
        _expect(delivery["status_code"] == "succeeded", "the delivery did not succeed")
        _expect(set(self._bodies) == {delivery["payload_bytes"]}, "the payload changed")
        self._say("")
        self._say(
            f"[bold green]delivered[/]  {len(ANSWERS)} attempts on record, the same bytes each time"
        )

    def _delivery(self, batch_id: str, attempts: int) -> dict[str, Any]:
        """The batch's delivery, once it has so many attempts on record."""
        while time.monotonic() < self._deadline:
            [delivery] = self._call("GET", f"/v1/batches/{batch_id}/callback")
            if delivery["attempt_count"] >= attempts:
                assert isinstance(delivery, dict)
                return delivery
            time.sleep(0.02)  # the record is in another process: all we can do is ask again
        raise OperatorError(f"attempt {attempts} was never put on record")

    def _call(self, method: str, path: str, body: object = None) -> Any:
        answer = self._api.request(method, path, json=body)
        if not answer.is_success:
            raise OperatorError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json()

    def _say(self, text: str) -> None:
        self._console.print(text)


def _called_as() -> str:
    """What to type: a virtual environment that is not activated is on no search path."""
    if shutil.which("primeflowd"):
        return "primeflowd"
    is_module = sys.argv[0].endswith("__main__.py")
    return f"{sys.executable} -m primeflowd" if is_module else sys.argv[0]


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise OperatorError(f"the demo went wrong: {otherwise}")


def _then(things: Sequence[object]) -> str:
    return ", then ".join(str(thing) for thing in things)
