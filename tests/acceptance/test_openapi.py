"""The OpenAPI document and a real daemon: strangers' tools that know nothing but the document.

Nothing here leaves this machine: the daemon may call one port only, on which nobody listens.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from primeflowd.api.openapi_document.document import document
from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess
from tests.api import documented

SETTINGS = """
[api]
bind = "127.0.0.1:0"
server = "{}"

[delivery.egress]
allow = ["127.0.0.0/8", "::1/128"]
allowed_ports = [9]
"""
# Examples for each operation, and in which phases. Coverage, which does not depend on the number,
# takes most of the time, and tries what is the same behind either server.
BUDGETS = {"lean": (12, "examples,coverage,fuzzing,stateful"), "hypercorn": (5, "fuzzing,stateful")}
CHROMIUM = shutil.which("chromium")
SCHEMATHESIS = """
seed = 1
hooks = "tests.acceptance.schemathesis_hooks"

[auth.openapi.bearer]
bearer = "{key}"

[generation]
max-examples = {examples}
database = "none"

[cache]
enabled = false

[checks.positive_data_acceptance]
# 422: the request is fine, the state of the object refuses it.
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]

[[operations]]
include-operation-id = "register_batches"
[operations.checks.negative_data_rejection]
# Each batch is judged by itself, in an answer that is a 200: the hooks check those judgements.
expected-statuses = ["200", "400", "401", "403", "404", "409", "415"]

[[operations]]
include-path = "/v1/callback-secrets/{{secret_id}}"
# DELETE disables a secret: it can be looked at, and enabled again.
[operations.checks.use_after_free]
enabled = false
"""


@pytest.fixture(params=BUDGETS)
def server(request: pytest.FixtureRequest) -> str:
    """Which server the daemon has."""
    return str(request.param)


@pytest.fixture
def daemon(server: str, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that serves."""
    with DaemonProcess(tmp_path / "primeflowd", SETTINGS.format(server)) as process:
        yield process


def test_schemathesis_finds_nothing(daemon: DaemonProcess, server: str, tmp_path: Path) -> None:
    """8: all its checks, with what the document allows and what it forbids."""
    examples, phases = BUDGETS[server]
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        SCHEMATHESIS.format(key=daemon.create_key("*"), examples=examples), encoding="utf-8"
    )
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)]
    command += ["run", f"{daemon.url}/openapi.json", "--checks", "all", "--continue-on-failure"]
    command += ["--phases", phases]
    # Where it finds its hooks, which is the folder that `tests` is in.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    # All but the one that serves the document itself.
    assert f"Tested: {len(list(operations())) - 1}" in done.stdout
    print(done.stdout[-400:])
    assert not daemon.events("request_failed")


def operations() -> Iterator[tuple[str, str, Any]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_examples_do_what_they_show(daemon: DaemonProcess) -> None:
    """8: every example of a request succeeds, and its answer is what the document says."""
    sent = 0
    with daemon.client(daemon.create_key("*")) as client:
        client.headers["X-Org-Id"] = "acme"
        for method, path, operation in operations():
            content = (
                operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            )
            for name, example in content.get("examples", {}).items():
                actual = path.format(**made_for(client, path))
                query = {
                    each["name"]: each["schema"]["examples"][0]
                    for each in operation["parameters"]
                    if each.get("required") and each["in"] == "query"
                }
                response = client.request(method, actual, params=query, json=example["value"])
                assert response.is_success, f"{method} {path} {name}: {response.text}"
                documented.check(method.upper(), actual, response)
                if path == "/v1/batches/bulk":
                    assert [each["status"] for each in response.json()["results"]]
                sent += 1
    assert sent >= 13


def made_for(client: httpx.Client, path: str) -> dict[str, str]:
    """What the names in a path can stand for: objects as the examples suppose them."""
    if "{batch_id}" in path:
        items = {"items": [{"client_ref": "row-1"}, {"client_ref": "row-2"}]}
        return {"batch_id": client.post("/v1/batches", json=items).raise_for_status().json()["id"]}
    if "{secret_id}" in path:
        made = client.post("/v1/callback-secrets", json={}).raise_for_status().json()
        return {"secret_id": made["id"]}
    return {}


def test_a_generated_client_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8: what a public generator makes of the document registers a batch and redelivers it."""
    with (
        ReceiverProcess(tmp_path / "receiver.log") as receiver,
        DaemonProcess(tmp_path / "primeflowd") as daemon,
    ):
        generate(daemon.url, tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        generated = importlib.import_module("generated")
        models = importlib.import_module("generated.models")
        calls = {
            name: importlib.import_module(f"generated.api.{name}").sync
            for name in (
                "batches.register_batch",
                "batches.redeliver_batch",
                "deliveries.get_delivery",
            )
        }
        with generated.AuthenticatedClient(daemon.url, token=daemon.create_key()) as client:
            body = models.BatchBody(callback_url=receiver.url, metadata={"order": 4711})
            body.status = models.BatchBodyStatusType0.SUCCEEDED
            batch = calls["batches.register_batch"](client=client, body=body)
            assert isinstance(batch, models.Batch)
            eventually(lambda: len(receiver.arrivals()) == 1)
            # Until the first attempt is on record, its delivery is in flight.
            delivery = eventually(
                lambda: made(calls["batches.redeliver_batch"](batch.id, client=client), models)
            )
            eventually(lambda: len(receiver.arrivals()) == 2)
            ended = eventually(
                lambda: succeeded(calls["deliveries.get_delivery"](delivery.id, client=client))
            )
        first, second = receiver.arrivals()
        assert first.body == second.body == ended.payload_bytes.encode()
        assert [attempt.status_code for attempt in ended.attempts] == [200]


def generate(url: str, directory: Path) -> None:
    """The package `generated` in `directory`; whatever the generator finds odd is an error."""
    settings = directory / "generator.yaml"
    settings.write_text("post_hooks: []\n")
    generator = Path(sys.executable).with_name("openapi-python-client")
    command = [str(generator), "generate", "--url", f"{url}/openapi.json", "--meta", "none"]
    command += ["--config", str(settings), "--output-path", str(directory / "generated")]
    command.append("--fail-on-warning")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def made(answer: Any, models: Any) -> Any:
    return answer if isinstance(answer, models.Delivery) else None


def succeeded(delivery: Any) -> Any:
    return delivery if delivery.status_code.value == "succeeded" else None


@pytest.mark.skipif(CHROMIUM is None, reason="the page is looked at with Chromium")
def test_a_browser_loads_the_page_from_nowhere_else(daemon: DaemonProcess, tmp_path: Path) -> None:
    """8: what the page makes a browser ask for is its style sheet and nothing of another host."""
    assert CHROMIUM is not None
    log = tmp_path / "net.json"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"]
    done = subprocess.run(
        [*command, "--dump-dom", f"{daemon.url}/docs"], capture_output=True, text=True, timeout=120
    )
    assert "/v1/batches/{batch_id}" in done.stdout.replace("<wbr>", ""), done.stderr[-2000:]
    events = [each.get("params") for each in json.loads(log.read_bytes())["events"]]
    # What a browser asks for on its own account has no origin.
    asked = {
        each["url"]
        for each in events
        if isinstance(each, dict) and each.get("initiator", "").startswith("http")
    }
    assert f"{daemon.url}/docs/style.css" in asked
    assert asked <= {f"{daemon.url}/docs/style.css", f"{daemon.url}/favicon.ico"}
