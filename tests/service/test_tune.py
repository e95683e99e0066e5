"""The settings for a machine: chosen by hand-made curves, and found on this one in little time."""

from pathlib import Path

import pytest
from rich.console import Console

from service import tune as tuning
from service.errors import SettingsError
from service.settings import Settings, load_settings
from service.tune import Point, choose, tune


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [
        ({(1, 4): 50, (1, 8): 90, (1, 16): 100}, (1, 16)),  # batching pays
        ({(1, 4): 98, (1, 8): 99, (1, 16): 100}, (1, 4)),  # it does not: a smaller batch answers sooner
        ({(1, 4): 98, (2, 4): 100}, (1, 4)),
        ({(1, 4): 80, (2, 4): 100, (1, 8): 100}, (1, 8)),  # as many at a time, fewer lanes
        ({(2, 1): 500, (1, 4): 100}, (1, 4)),  # a limit of one would end all batching
    ],
)
def test_the_fewest_images_at_a_time_that_are_as_good(
    rates: dict[tuple[int, int], float], wanted: tuple[int, int]
) -> None:
    chosen = choose([Point(lanes, batch, rate) for (lanes, batch), rate in rates.items()])
    assert (chosen.lanes, chosen.max_batch) == wanted


def test_what_is_found_here_is_what_the_service_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_ROUNDS": 1, "_POINT_S": 0.01, "_TRIAL_S": 0.5, "_BATCHES": (1, 4)}.items():
        monkeypatch.setattr(tuning, name, value)
    tuned = tune(Settings(threads=2), None, Console(quiet=True))
    assert tuned.max_batch == 4
    assert 0 < tuned.predicted_images_per_s < tuned.infer_images_per_s
    assert tuned.measured_images_per_s > 0
    for line in tuned.lines().splitlines():
        name, _, setting = line.partition("=")
        monkeypatch.setenv(name, setting)
    settings = load_settings()
    assert (settings.threads, settings.lanes, settings.max_batch) == (2, tuned.lanes, 4)


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no picture"):
        tune(Settings(), tmp_path, Console(quiet=True))
