"""The app of the Celery contender, as a team would write it: a task that signs and POSTs.

Runs in the environment that `--setup` makes; nothing of primeflowd is imported here.
"""

import hmac
import os

# None of these is in the environment that is type-checked.
import requests  # type: ignore[import-untyped,import-not-found,unused-ignore]
from celery import Celery  # type: ignore[import-untyped,import-not-found,unused-ignore]
from requests.adapters import HTTPAdapter  # type: ignore[import-untyped,import-not-found,unused-ignore]

_SECRET = b"whsec_benchmark_0123456789abcdef"

app = Celery("benchmark", broker=os.environ["BENCHMARK_BROKER"])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,  # a task is not lost with its worker
    broker_connection_retry_on_startup=True,
)

session = requests.Session()
# As many pools as there are destinations; the default of 10 would reconnect for nearly every task.
session.mount("http://", HTTPAdapter(pool_connections=64, pool_maxsize=16))


def _deliver(url: str, body: str) -> None:
    content = body.encode()
    signature = hmac.digest(_SECRET, content, "sha256").hex()
    answer = session.post(
        url,
        data=content,
        headers={"Content-Type": "application/json", "X-Signature": signature},
        timeout=30,
    )
    answer.raise_for_status()


deliver = app.task(
    name="deliver",
    autoretry_for=(requests.RequestException,),
    retry_backoff=True,
    max_retries=3,
)(_deliver)
