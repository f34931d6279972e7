"""`GET /metrics`, for Prometheus: without a key, as the health checks are.

It shows the hosts of destinations and no more of any org; see systemd/monitoring/README.md on who
should be let at it.
"""

from typing import Final

from primeflowd.api.answer import Answer
from primeflowd.api.incoming import Fields
from primeflowd.api.services import Services


def scrape(services: Services, headers: Fields) -> Answer:
    """The present numbers, in OpenMetrics if the client names it, else in Prometheus' own text."""
    body, content_type = services.scrape(", ".join(headers.getlist("Accept")))
    return Answer(200, body, (("Content-Type", content_type),))


OPEN_ROUTES: Final = (("/metrics", scrape),)
