"""The whole table on a data set of shapes: every system, in order, resumable, chosen on validation."""

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
from model_export import __main__ as command
from model_export.errors import ConfigError, SourceError
from model_export.paper_table.colour import colour_histogram
from model_export.paper_table.run import ORACLE, Result, compare
from model_export.paper_table.systems import STRATEGIES
from model_export.paper_table.table import chosen, notes_on, write_table

ROWS = [
    *("colour histogram", "raw 1280-d", "PCA-64", "PCA-64, whitened"),
    *("specialist: discs", "specialist: plates", "specialist: signs", ORACLE),
    *("UJCRR", "UJCDS", "USCRR", "USCDS", "balanced", "UDON", "multi-stage"),
]


@pytest.fixture(scope="module")
def strategies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The strategies that ship, of two epochs at most."""
    folder = tmp_path_factory.mktemp("strategies")
    for file in STRATEGIES.glob("*.toml"):
        short = re.sub(r"(epochs|evaluations) = \d+", r"\1 = 2", file.read_text())
        (folder / file.name).write_text(short)
    return folder


@pytest.fixture(scope="module")
def results(
    shapes: Dataset, strategies: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Result], Path]:
    runs = tmp_path_factory.mktemp("runs")
    return compare(shapes, strategies, runs, cache, 1, Console()), runs


def test_every_system_has_its_row(results: tuple[list[Result], Path]) -> None:
    found, _ = results
    assert [result.row for result in found] == ROWS
    for result in found:
        assert set(result.test) == {"discs", "plates", "signs", "mean"}
        domains = [result.test[domain]["R@1"] for domain in ("discs", "plates", "signs")]
        assert result.test["mean"]["R@1"] == pytest.approx(np.mean(domains))
        assert (result.cpu_s is None) == (result.row in ROWS[:4])


def test_what_was_trained_is_not_trained_again(
    results: tuple[list[Result], Path], shapes: Dataset, strategies: Path, cache: Path
) -> None:
    found, runs = results
    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*")}
    assert compare(shapes, strategies, runs, cache, 1, Console()) == found
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("*")} == before


def test_the_table_holds_the_results(
    results: tuple[list[Result], Path], shapes: Dataset, tmp_path: Path
) -> None:
    found, _ = results
    text = write_table(found, shapes, "the command", "The notes.", tmp_path).read_text()
    assert "The notes." in text
    assert "| training pictures | 25 | 2,831,222 |" in text
    lines = {line.split(" |")[0].removeprefix("| "): line for line in reversed(text.splitlines())}
    for result in found:
        assert f"| **{100 * result.test['mean']['R@1']:.1f}** |" in lines[result.row]
    with (tmp_path / f"{shapes.root.name}.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(ROWS) * 4
    assert float(rows[0]["R@1"]) == found[0].test["discs"]["R@1"]
    assert (tmp_path / f"{shapes.root.name}.png").read_bytes().startswith(b"\x89PNG")


def test_its_last_line_is_one_object(
    results: tuple[list[Result], Path],
    shapes: Dataset,
    strategies: Path,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, runs = results
    folders = {"--data": shapes.root, "--strategies": strategies, "--runs": runs, "--cache": cache}
    words = [str(word) for pair in {**folders, "--out": tmp_path}.items() for word in pair]
    monkeypatch.setattr("sys.argv", ["model_export", "compare", *words, "--seeds", "1", "--json"])
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["results"] == [asdict(result) for result in found]
    assert said["chosen"] == asdict(chosen(found))


def test_what_would_stop_it_is_said_before_anything_is_trained(
    shapes: Dataset, strategies: Path, tmp_path: Path
) -> None:
    def refused(data: Dataset, strategies: Path, said: str) -> None:
        with pytest.raises((SourceError, ConfigError), match=said):
            compare(data, strategies, tmp_path / "runs", tmp_path / "cache", 1, Console())
        assert not (tmp_path / "runs").exists()
        assert not (tmp_path / "cache").exists()

    mixed = Path(shutil.copytree(strategies, tmp_path / "strategies"))
    udon = mixed / "udon.toml"
    udon.write_text('backbone = "efficientnet-lite1"\n' + udon.read_text())
    refused(shapes, mixed, r"share one backbone, .*lite0 \(pretrained\), efficientnet-lite1 \(pretrained\)")
    data = Dataset(Path(shutil.copytree(shapes.root, tmp_path / "data")))
    info = data.root / "data" / "info_files"
    data.image(data.records("discs", "test")[0]).unlink()
    refused(data, strategies, "1 images")
    (info / "discs" / "test.json").write_text("[]")
    (info / "signs" / "val.json").write_text("[]")
    refused(data, strategies, "no validation queries in signs")
    (info / "plates" / "train.json").write_text("[]")
    refused(data, strategies, "no training images in plates")


def test_notes_are_of_one_data_set(shapes: Dataset, octet: Dataset) -> None:
    assert "Landmarks and tools" in notes_on(octet, STRATEGIES)
    assert notes_on(shapes, STRATEGIES) == ""


def test_validation_chooses_and_only_among_universal_models() -> None:
    def made(row: str, val: float, test: float, cpu_s: float | None = 1.0) -> Result:
        return Result(row, 0, val, {"mean": {"R@1": test, "mMP@5": test}}, cpu_s)

    rows = [made("raw", 0.9, 0.9, None), made("specialist: a", 0.9, 0.9), made(ORACLE, 0.9, 0.9)]
    assert chosen([*rows, made("a", 0.5, 0.8), made("b", 0.6, 0.1)]).row == "b"


def test_a_colour_histogram_by_hand() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = 255, 255, 255
    wanted = np.zeros(64, np.float32)
    wanted[0], wanted[63] = np.sqrt(0.75), np.sqrt(0.25)
    np.testing.assert_allclose(colour_histogram(pixels), wanted, rtol=1e-6)
