"""The table of all routes that take an API key, by resource."""

from typing import Final

from primeflowd.api import (
    batches,
    deliveries,
    destinations,
    explain,
    health,
    items,
    keys,
    policies,
    queue_shape,
    recoveries,
    reload,
    secrets,
)

ROUTES: Final = (
    *policies.ROUTES,
    *batches.ROUTES,
    *items.ROUTES,
    *deliveries.ROUTES,
    *queue_shape.ROUTES,
    *explain.ROUTES,
    *recoveries.ROUTES,
    *destinations.ROUTES,
    *secrets.ROUTES,
    *keys.ROUTES,
    *health.ROUTES,
    *reload.ROUTES,
)
