"""The complete table on a data set of shapes: every system, in order, resumable, chosen on validation."""

import csv
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from model_export.errors import ConfigError, SourceError
from model_export.paper_table.run import ORACLE, Result, compare
from model_export.paper_table.systems import STRATEGIES, colour_histogram
from model_export.paper_table.table import best_on_validation, strategy_notes, write_table
from tests.support.commands import RunCommand

ROWS = [
    *("colour histogram", "raw 1280-d", "PCA-64", "PCA-64, whitened"),
    *("specialist: discs", "specialist: plates", "specialist: signs", ORACLE),
    *("UJCRR", "UJCDS", "USCRR", "USCDS", "balanced", "UDON", "multi-stage"),
]


@pytest.fixture(scope="module")
def strategies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped strategies, shortened to two epochs, evaluations and views."""
    folder = tmp_path_factory.mktemp("strategies")
    for file in STRATEGIES.glob("*.toml"):
        short = re.sub(r"(epochs|evaluations|views) = \d+", r"\1 = 2", file.read_text())
        (folder / file.name).write_text(short)
    return folder


@pytest.fixture(scope="module")
def results(
    shapes: Dataset, strategies: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Result], Path]:
    runs = tmp_path_factory.mktemp("runs")
    return compare(shapes, strategies, runs, cache, 1, Console()), runs


def test_every_system_has_its_row(results: tuple[list[Result], Path]) -> None:
    expected, _ = results
    assert [result.row for result in expected] == ROWS
    for result in expected:
        assert set(result.test) == {"discs", "plates", "signs", "mean"}
        domains = [result.test[domain]["R@1"] for domain in ("discs", "plates", "signs")]
        assert result.test["mean"]["R@1"] == pytest.approx(np.mean(domains))
        assert (result.cpu_s is None) == (result.row in ROWS[:4])


def test_finished_runs_are_not_repeated(
    results: tuple[list[Result], Path], shapes: Dataset, strategies: Path, cache: Path
) -> None:
    expected, runs = results
    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*")}
    assert compare(shapes, strategies, runs, cache, 1, Console()) == expected
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("*")} == before


def test_table_contains_the_results(
    results: tuple[list[Result], Path], shapes: Dataset, tmp_path: Path
) -> None:
    expected, _ = results
    text = write_table(expected, shapes, "the command", "The notes.", tmp_path).read_text()
    assert "The notes." in text
    assert "| training images | 25 | 2,831,222 |" in text
    lines = {line.split(" |")[0].removeprefix("| "): line for line in reversed(text.splitlines())}
    for result in expected:
        assert f"| **{100 * result.test['mean']['R@1']:.1f}** |" in lines[result.row]
    with (tmp_path / f"{shapes.root.name}.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(ROWS) * 4
    assert float(rows[0]["R@1"]) == expected[0].test["discs"]["R@1"]
    assert (tmp_path / f"{shapes.root.name}.png").read_bytes().startswith(b"\x89PNG")


def test_last_line_is_a_json_object(
    results: tuple[list[Result], Path],
    shapes: Dataset,
    strategies: Path,
    cache: Path,
    tmp_path: Path,
    run_command: RunCommand,
) -> None:
    expected, runs = results
    folders = {"--data": shapes.root, "--strategies": strategies, "--runs": runs, "--cache": cache}
    words = [word for pair in {**folders, "--out": tmp_path}.items() for word in pair]
    completed = run_command("compare", *words, "--seeds", "1", "--json")
    assert completed.returncode == 0
    body = json.loads(completed.stdout.splitlines()[-1])
    assert body["results"] == [asdict(result) for result in expected]
    assert body["chosen"] == asdict(best_on_validation(expected))


def test_invalid_input_is_refused_before_training(shapes: Dataset, strategies: Path, tmp_path: Path) -> None:
    def refused(data: Dataset, strategies: Path, text: str) -> None:
        with pytest.raises((SourceError, ConfigError), match=text):
            compare(data, strategies, tmp_path / "runs", tmp_path / "cache", 1, Console())
        assert not (tmp_path / "runs").exists()
        assert not (tmp_path / "cache").exists()

    mixed = Path(shutil.copytree(strategies, tmp_path / "strategies"))
    udon = mixed / "udon.toml"
    udon.write_text('backbone = "efficientnet-lite1"\n' + udon.read_text())
    refused(shapes, mixed, r"one backbone, .*lite0 \(pretrained\), efficientnet-lite1 \(pretrained\)")
    data = Dataset(Path(shutil.copytree(shapes.root, tmp_path / "data")))
    info = data.root / "data" / "info_files"
    data.image(data.records("discs", "test")[0]).unlink()
    refused(data, strategies, "1 images")
    (info / "discs" / "test.json").write_text("[]")
    (info / "signs" / "val.json").write_text("[]")
    refused(data, strategies, "no validation queries in signs")
    (info / "plates" / "train.json").write_text("[]")
    refused(data, strategies, "no training images in plates")


def test_notes_belong_to_one_data_set(shapes: Dataset, octet: Dataset) -> None:
    assert "Landmarks and tools" in strategy_notes(octet, STRATEGIES)
    assert strategy_notes(shapes, STRATEGIES) == ""


def test_best_model_is_universal_and_chosen_on_validation() -> None:
    def result(row: str, val: float, test: float, cpu_s: float | None = 1.0) -> Result:
        return Result(row, 0, val, {"mean": {"R@1": test, "mMP@5": test}}, cpu_s)

    rows = [result("raw", 0.9, 0.9, None), result("specialist: a", 0.9, 0.9), result(ORACLE, 0.9, 0.9)]
    assert best_on_validation([*rows, result("a", 0.5, 0.8), result("b", 0.6, 0.1)]).row == "b"


def test_colour_histogram_of_four_pixels() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = 255, 255, 255
    expected = np.zeros(64, np.float32)
    expected[0], expected[63] = np.sqrt(0.75), np.sqrt(0.25)
    np.testing.assert_allclose(colour_histogram(pixels), expected, rtol=1e-6)
