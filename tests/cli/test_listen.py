"""`send` to `listen`: signed by the one, verified by the other (contract 6.2, section 7)."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from primeflowd.builtin.signers import Ed25519, HmacSha256, StandardWebhooks
from primeflowd.cli.verifying import TOLERANCE, findings
from primeflowd.hookspecs import SigningRequest
from primeflowd.instants import SECOND
from primeflowd.plain_secret import generate
from primeflowd.testing.factories import NOW
from tests.cli.conftest import Run
from tests.network import Authority

BODY = b'{"n":1.0}'


def verified(headers: dict[str, str], *secrets: str, body: bytes = BODY, at: int = NOW) -> object:
    return findings(headers, body, secrets, at, hmac_header="X-Mark", hmac_prefix="sha256=")


@pytest.mark.parametrize("signer", [StandardWebhooks(), Ed25519(), HmacSha256("X-Mark", "sha256=")])
def test_what_a_signer_made_is_genuine(signer: StandardWebhooks) -> None:
    """6.2: by any of the secrets; not by another, and not for other bytes."""
    secret, other = generate(), generate()
    request = SigningRequest("b", "d", "a", NOW // SECOND, BODY, (secret,), "https://x.example/")
    headers = {name.lower(): value for name, value in signer.sign(request)}
    assert verified(headers, other, secret) == {signer.name: "genuine"}
    assert verified(headers, other) == {signer.name: "wrong"}
    assert verified(headers, secret, body=BODY + b" ") == {signer.name: "wrong"}
    assert verified(headers) == {signer.name: "unchecked"}
    late = "genuine" if signer.name == "hmac-sha256" else "stale"
    assert verified(headers, secret, at=NOW + TOLERANCE + SECOND) == {signer.name: late}
    assert verified({}, secret) == {}


def test_the_public_package_agrees() -> None:
    """6.2: its mark is genuine, and rubbish beside it does no harm."""
    secret = generate()
    moment = datetime.fromtimestamp(NOW // SECOND, UTC)
    mark = Webhook(secret).sign("m", moment, BODY.decode())
    headers = {
        "webhook-id": "m",
        "webhook-timestamp": str(NOW // SECOND),
        "webhook-signature": f"v1,!! {mark}",
    }
    assert verified(headers, "no secret", secret) == {"standard-webhooks": "genuine"}


def test_send_and_listen(primeflowd: Run, environment: dict[str, str], tmp_path: Path) -> None:
    """A genuine callback is answered 200, another 401; SIGTERM ends the receiver with 0."""
    (tmp_path / "primeflowd.toml").write_text('[delivery.egress]\nallow = ["127.0.0.0/8"]\n')
    (tmp_path / "body").write_bytes(BODY)
    secret = generate()
    words = ["listen", "--port", "0", "--secret", secret, "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "primeflowd", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as listener:
        try:
            assert listener.stderr is not None
            url = listener.stderr.readline().split()[2].rstrip(",")
            words = ["send", url, "--payload", "body", "--json"]
            done = primeflowd(*words, "--secret", secret)
            assert (done.returncode, done.stderr) == (0, "")
            trip = json.loads(done.stdout)
            assert (trip["status_code"], trip["egress"]) == (200, {"127.0.0.1": "allowed"})
            done = primeflowd(*words)
            assert done.returncode == 1
            assert "answered 401" in done.stderr
            refused = primeflowd("send", "http://10.0.0.1/", "--payload", "body")
            assert refused.returncode == 1
            assert "url_not_allowed" in refused.stderr
            listener.terminate()
            out, _ = listener.communicate(timeout=20)
        finally:
            listener.kill()
    assert listener.returncode == 0
    first, second = map(json.loads, out.splitlines())
    assert (first["body"].encode(), first["answered"]) == (BODY, 200)
    assert set(first["signatures"].values()) == {"genuine"}
    assert (second["signatures"], second["answered"]) == ({}, 401)


def test_send_by_tls(primeflowd: Run, tmp_path: Path) -> None:
    """7: verified by the bundle of the configuration; what the handshake came to is told."""
    authority = Authority(tmp_path)
    authority.write_server(tmp_path / "its.pem", "localhost")
    (tmp_path / "body").write_bytes(BODY)
    settings = '[delivery.egress]\nallow = ["127.0.0.0/8", "::1/128"]\n'
    receiver = [sys.executable, "-m", "primeflowd.testing.receiver", "--port", "0"]
    with subprocess.Popen(
        [*receiver, "--tls", tmp_path / "its.pem"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = f"https://localhost:{int(process.stdout.readline())}/"
            (tmp_path / "primeflowd.toml").write_text(settings)
            refused = primeflowd("send", url, "--payload", "body")
            assert refused.returncode == 1
            assert "tls_error: TLS with localhost failed: certificate refused" in refused.stderr
            assert "\ntls:" not in refused.stdout
            bundle = f'[delivery]\nca_file = "{authority.ca_file}"\n'
            (tmp_path / "primeflowd.toml").write_text(settings + bundle)
            done = primeflowd("send", url, "--payload", "body")
            trip = json.loads(primeflowd("send", url, "--payload", "body", "--json").stdout)
        finally:
            process.kill()
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == f"POST {url}"
    assert "unsigned:  no --secret was given" in lines
    [tls] = [line for line in lines if line.startswith("tls:")]
    assert re.fullmatch(
        r"tls: +TLSv1\.[23], certificate for localhost verified, valid until \S+Z, in [0-9.]+ ms",
        tls,
    )
    assert trip["tls"].startswith("TLSv1.")
    assert trip["tls_ms"] > 0
    assert trip["connect_ms"] >= 0
