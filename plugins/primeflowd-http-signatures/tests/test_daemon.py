"""A real daemon signs, a real receiver gets it, and the customer verifies what arrived."""

import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import trio
from http_message_signatures import InvalidSignature

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver import Receiver, open_receiver
from primeflowd_http_signatures.settings import DERIVED, FIELDS

ENABLED = '[plugins]\nenable = ["http-signatures"]\n[signing]\nsigners = ["http-signatures"]\n'


def has_arrived(client: httpx.Client, batch: str) -> bool:
    [delivery] = client.get(f"/v1/batches/{batch}/callback").json()
    return bool(delivery["status_code"] == "succeeded")


def deliver(directory: Path, settings: str, urls: Sequence[str]) -> list[str]:
    """Have one callback sent to each of `urls`, with the key that is then shown."""
    daemon = DaemonProcess(directory, ENABLED + settings)
    key = daemon.create_key()
    with daemon, daemon.client(key) as client:
        shown = []
        for url in urls:
            secret = client.post("/v1/callback-secrets", json={}).json()["id"]
            client.patch(f"/v1/callback-secrets/{secret}", json={"is_current": True})
            body = {"callback_url": url, "status": "succeeded", "output": {"größe": 1.0}}
            batch = client.post("/v1/batches", json=body).json()["id"]
            eventually(partial(has_arrived, client, batch))
            answer = client.get(f"/v1/callback-secrets/{secret}/public-key").json()
            shown.append(answer["public_key"])
        assert daemon.terminate() == 0
    return shown


def arrived(customer: SimpleNamespace, receiver: Receiver, number: int) -> tuple[object, bytes]:
    """A request as a web framework would show it to the customer."""
    request = receiver.requests[number]
    url = f"http://{request.header('Host')}{request.target}"
    return customer.Callback(request.method, url, dict(request.headers)), request.body


async def test_customer_verifies_what_arrives(customer: SimpleNamespace, tmp_path: Path) -> None:
    """With the public key that the API shows, before and after a rotation."""
    async with trio.open_nursery() as nursery, open_receiver(nursery) as receiver:
        urls = [receiver.url("/hook?a=1"), receiver.url("/hook")]
        shown = await trio.to_thread.run_sync(deliver, tmp_path, "", urls)
    assert len(receiver.requests) == 2
    for number, key in enumerate(shown):
        callback, body = arrived(customer, receiver, number)
        nonce = customer.verify(callback, body, customer.trusted([key]))
        assert nonce == receiver.requests[number].header("Primeflow-Request-Id")
        customer.verify(callback, body, customer.trusted(shown))
        with pytest.raises(InvalidSignature):
            customer.verify(callback, body, customer.trusted([shown[1 - number]]))
        with pytest.raises(InvalidSignature):
            customer.verify(callback, body.replace(b"1.0", b"1.1"), customer.trusted([key]))


async def test_every_component_is_as_it_goes_over_the_wire(
    customer: SimpleNamespace, tmp_path: Path
) -> None:
    """Also for a URL that the client spelled otherwise than it is sent."""
    settings = f"[plugins.http-signatures]\ncomponents = {list(DERIVED + FIELDS)}\n"
    async with trio.open_nursery() as nursery, open_receiver(nursery) as receiver:
        url = receiver.url("/a/../größe?q=ä%20b&c=?").replace("http:", "HTTP:")
        [key] = await trio.to_thread.run_sync(deliver, tmp_path, settings, [url])
    callback, body = arrived(customer, receiver, 0)
    assert receiver.requests[0].target == "/a/../gr%C3%B6%C3%9Fe?q=%C3%A4%20b&c=?"
    customer.verify(callback, body, customer.trusted([key]))


def test_mistake_in_the_settings_is_told_before_anything_starts(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, f'{ENABLED}[plugins.http-signatures]\nlabel = "A"\n')
    with pytest.raises(subprocess.CalledProcessError) as failed:
        daemon.command("check-config")
    assert "plugins.http-signatures: label: expected" in failed.value.stderr
    assert len(failed.value.stderr.splitlines()) == 1
