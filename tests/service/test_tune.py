"""Tuning: the choice among the points of a curve, and a short run on this machine."""

from pathlib import Path

import pytest
from rich.console import Console

from service.errors import SettingsError
from service.settings import Settings, load_settings
from service.tune import Effort, Point, choose, tune


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({(1, 4): 50, (1, 8): 90, (1, 16): 100}, (1, 16)),  # batching pays off
        ({(1, 4): 98, (1, 8): 99, (1, 16): 100}, (1, 4)),  # it does not: a smaller batch responds sooner
        ({(1, 4): 98, (2, 4): 100}, (1, 4)),
        ({(1, 4): 80, (2, 4): 100, (1, 8): 100}, (1, 8)),  # as many images in flight, lower concurrency
        ({(2, 1): 500, (1, 4): 100}, (1, 4)),  # a limit of 1 would disable batching
    ],
)
def test_the_fewest_images_in_flight_within_three_percent_are_chosen(
    rates: dict[tuple[int, int], float], expected: tuple[int, int]
) -> None:
    chosen = choose([Point(lanes, batch, rate) for (lanes, batch), rate in rates.items()])
    assert (chosen.lanes, chosen.max_batch) == expected


def test_the_tuned_settings_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    effort = Effort(batches=(1, 4), rounds=1, point_s=0.01, trial_s=0.5)
    tuned = tune(Settings(threads=2), None, Console(quiet=True), effort)
    assert tuned.max_batch == 4
    assert 0 < tuned.predicted_images_per_s < tuned.infer_images_per_s
    assert tuned.measured_images_per_s > 0
    for line in tuned.lines().splitlines():
        name, _, setting = line.partition("=")
        monkeypatch.setenv(name, setting)
    settings = load_settings()
    assert (settings.threads, settings.lanes, settings.max_batch) == (2, tuned.lanes, 4)


@pytest.mark.parametrize(("threads", "cpus"), [("2", 4), ("", 5)])
def test_workers_share_the_cpus_once(monkeypatch: pytest.MonkeyPatch, threads: str, cpus: int) -> None:
    """The threads in the settings are those of a worker."""
    for module in ("service.settings", "service.tune"):
        monkeypatch.setattr(f"{module}.usable_cpus", lambda: 5)
    monkeypatch.setenv("UIE_THREADS", threads)
    settings = Settings(workers=2, qdrant_url="http://127.0.0.1:6333")
    effort = Effort(batches=(4,), rounds=1, point_s=0.01, trial_s=0.1)
    tuned = tune(settings, None, Console(quiet=True), effort)
    assert tuned.threads == cpus // tuned.workers


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no image"):
        tune(Settings(), tmp_path, Console(quiet=True))
