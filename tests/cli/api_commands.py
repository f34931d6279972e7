"""Commands that ask a daemon's API, run in this process against a real daemon."""

import json
from dataclasses import dataclass
from typing import Any

import httpx
from click.testing import CliRunner, Result

from primeflowd.cli import primeflowd
from primeflowd.errors import OperatorError


@dataclass
class Desk:
    """Somebody at a terminal with a key, and the API that the commands ask."""

    url: str
    key: str
    client: httpx.Client
    operator_key: str = ""

    def run(self, *words: str, **environment: str) -> Result:
        """A command to its end; what it raised is in `exception`."""
        ours = {"PRIMEFLOWD_API_URL": self.url, "PRIMEFLOWD_API_KEY": self.key}
        return CliRunner().invoke(primeflowd, words, env=ours | environment)

    def told(self, *words: str) -> str:
        """What a command that must succeed printed."""
        done = self.run(*words)
        assert done.exit_code == 0, (done.output, done.exception)
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.told(*words, "--json"))

    def refused(self, *words: str, **environment: str) -> str:
        """The message of a command that must fail; `__main__` prints it and exits with 1."""
        done = self.run(*words, **environment)
        assert isinstance(done.exception, OperatorError), (done.output, done.exception)
        return str(done.exception)

    def ended_batch(self, url: str, **fields: object) -> tuple[str, str]:
        """The id of a batch that was born ended, and that of its delivery."""
        body = {"status": "succeeded", "callback_url": url} | fields
        batch = self.client.post("/v1/batches", json=body).raise_for_status().json()["id"]
        [delivery] = self.client.get(f"/v1/batches/{batch}/callback").json()
        return batch, delivery["id"]
