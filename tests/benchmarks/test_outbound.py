import os
from pathlib import Path

import pytest

from tests.benchmarks import machine, outbound
from tests.benchmarks.contenders.contender import Failed


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_posts_over_tls_are_counted_and_cost_something(tmp_path: Path) -> None:
    cores = machine.apart()
    with outbound._tls_receiver(tmp_path, cores) as port:
        authority = str(tmp_path / "authority.pem")
        with outbound._sending("https", port, authority, cores) as sending:
            posts, used = sending.measure(0.2)
            again, _ = sending.measure(0.1)
    # A round ends when all that was begun is answered.
    assert posts >= outbound.CONNECTIONS
    assert again >= outbound.CONNECTIONS
    assert 0 < used < 60


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_who_cannot_send_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cores = machine.apart()
    with (
        outbound._tls_receiver(tmp_path, cores) as port,
        pytest.raises(Failed, match="https did not start"),
        # Without the authority nobody is trusted.
        outbound._sending("https", port, "", cores),
    ):
        pass
    assert "tls_error" in capfd.readouterr().err
