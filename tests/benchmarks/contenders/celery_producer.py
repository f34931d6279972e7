"""Enqueues one Celery task a callback; see producer.py. Runs where celery_app.py does."""

import time
from collections.abc import Callable

from tests.benchmarks.contenders.celery_app import deliver
from tests.benchmarks.producer import Body, Pace, Settings, serve


def prepare(settings: Settings) -> Callable[[Pace], None]:
    body = Body()

    def work(pace: Pace) -> None:
        while not pace.is_over(now := time.monotonic_ns()):
            if not pace.is_due(now):
                time.sleep(pace.wait(now))
                continue
            (number,) = pace.take(now)
            deliver.delay(settings.url(number), body.text(number))
            pace.accept(number, time.monotonic_ns())

    return work


if __name__ == "__main__":
    serve(prepare)
