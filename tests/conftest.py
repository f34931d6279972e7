"""What all tests share: how Hypothesis runs, and plugins to install.

Hypothesis is derandomised, so that a red run is red again.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.distributions import Distributions, Install
from tests.sending import KEEPS

settings.register_profile("primeflowd", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("primeflowd")


def pytest_collection_finish() -> None:
    """What importing and collecting made stays to the end: no garbage collection need look through
    it again. There are tests that ask for hundreds, to count what is open."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution with one plugin, for this process; see Distributions.install."""
    distributions = Distributions(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def install_one(name: str, source: str, **options: Any) -> None:
        distributions.install(name, source, **options)
        monkeypatch.syspath_prepend(tmp_path)  # drops what the import system remembers

    return install_one


@pytest.fixture(params=[False, True], ids=["in tasks", "over kept connections"])
def keeps(request: pytest.FixtureRequest) -> Iterator[bool]:
    """For what holds for attempts in tasks and for those without one."""
    KEEPS.set(request.param)
    yield request.param
    KEEPS.set(False)
