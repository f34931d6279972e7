"""The parts of storage_conformance.py, one for each family of promises."""

import pytest

_PARTS = (
    "access",
    "base",
    "batches",
    "callers",
    "deliveries",
    "nodes",
    "queue",
    "retention",
    "sharing",
    "submissions",
    "writes",
)

# Before any of them is imported: so that an assertion that fails shows its values.
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))
