"""The README's tour, run as a reader would paste it: a documented command that fails is a bug."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def tour() -> str:
    """The shell blocks of the tour, on ports and in an environment of this test's own."""
    section = README.read_text().split("## Five minutes with curl")[1].split("\n## ")[0]
    script = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    api, receiver = str(free_port()), str(free_port())
    return (
        script.replace(". .venv/bin/activate\n", "")
        .replace("[delivery.egress]", f'[api]\nbind = "127.0.0.1:{api}"\n\n[delivery.egress]')
        .replace("8081", api)
        .replace("9000", receiver)
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tour is made with curl")
def test_tour() -> None:
    """1: key, policy, secret, batch, completion, history and redelivery, all with curl."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", tour()], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert '"plan_id":"nightly"' in done.stdout
    assert '"plain_secret":"whsec_' in done.stdout
    assert '"attempt_count": 2' in done.stdout
    assert '"status_code": 503' in done.stdout
    assert '"is_automatic": false' in done.stdout
    assert done.stdout.count('"method":"POST"') == 2
