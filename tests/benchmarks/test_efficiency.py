"""Shares of the ceiling, for a hand-computed round."""

import pytest

from benchmarks.baselines.efficiency import _Round, _share_without_client


def test_the_share_without_the_client_includes_idle_time() -> None:
    """100 images on two cores: 2.0 core seconds served, 0.4 of the client and 0.2 idle; 1.2 in process."""
    result = _Round(
        served=100,
        ceiling=100 / 0.6,
        server_cpu_s=1.4,
        client_cpu_s=0.4,
        ceiling_cpu_s=1.2,
        idle_cpu_s=0.2,
        responses=[],
    )
    assert _share_without_client(result, cores=2, images=100) == pytest.approx(1.2 / 1.6)
