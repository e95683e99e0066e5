"""Operating points on live services: the ladder, a sweep, the paper's systems."""

import csv
import io
import json
import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from rich.console import Console

from benchmarks.cli import points as commands
from benchmarks.errors import BenchmarkError, RunError
from benchmarks.load.driver import Client
from benchmarks.operating_points.ladder import (
    ladder_points,
    ladder_to_json,
    ladder_to_markdown,
    print_ladder,
    run_ladder,
)
from benchmarks.operating_points.point import (
    Point,
    Workspace,
    finish,
    is_complete,
    measure,
    port_of,
    summary_of,
)
from benchmarks.operating_points.strategies import ORACLE, Systems, replay_systems
from benchmarks.operating_points.strategies import to_markdown as systems_markdown
from benchmarks.operating_points.sweep import axes_of, plot_sweep, run_sweep
from benchmarks.replay.records import ReplayRecord
from benchmarks.replay.results import embedding_of
from benchmarks.reports import write_points
from benchmarks.runs.records import write_summary
from benchmarks.runs.run import PACKED, Observation, Run, to_line
from benchmarks.runs.validity import Limits
from benchmarks.targets.process import python_m
from model_export.export.fp32 import export_model
from service.manifest import load_manifest
from tests.support.shapes import SHAPES, draw
from tests.support.tiny import tiny_data, tiny_trained

QUIET = Console(quiet=True)
COLOURS = ((200, 30, 30), (40, 60, 210))
pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A data set of 56 images, and a folder for the runs."""
    data = tiny_data(tmp_path_factory.mktemp("data"))
    for domain, shift in (("animals", 0), ("plants", 1)):  # in noise there would be nothing to find
        for split in data.splits(domain):
            for seed, record in enumerate(data.records(domain, split)):
                shape, colour = SHAPES[(record.class_ids[0] + shift) % 3], COLOURS[record.class_ids[0] % 2]
                draw(seed, shape, colour).save(data.image(record))
    client = Client(warm_up=2, limits=Limits(send_lag_ms=1e9, core_share=1e9))
    return Workspace(data, tmp_path_factory.mktemp("points"), None, client, QUIET)


def cut_short(run: Run, observations: Sequence[Observation]) -> None:
    """Leave the run on disk as if it had been interrupted after these observations."""
    (run.folder / PACKED).unlink()
    (run.folder / "summary.json").unlink()
    lines = "".join(map(to_line, observations))
    (run.folder / "observations-000-00.jsonl").write_text(lines)


def change_summary(run: Run, **changes: Any) -> None:
    """Replace fields of the run's summary."""
    write_summary(run.folder, replace(summary_of(run), **changes))


def test_each_step_keeps_the_settings_of_the_step_before() -> None:
    models = {"int8": Path("a"), "int8-draft": Path("b")}
    torch, onnx, int8, draft, quantized, *graphs = ladder_points("zoo", "cpu", models)
    assert torch.naive == "zoo"
    assert list(torch.environment) == ["OMP_NUM_THREADS"]
    assert (onnx.settings["model"], onnx.exact, onnx.naive) == ("zoo", True, None)
    assert (int8.settings["model"], draft.settings["model"]) == ("a", "b")
    assert quantized.settings == {**draft.settings, "index_quantization": "scalar-int8"}
    assert not quantized.exact
    assert [(point.ef, point.graph, point.settings) for point in graphs] == [
        (ef, True, quantized.settings) for ef in (256, 64, 32)
    ]


def test_the_ladder_is_measured_once_on_live_services(workspace: Workspace, zoo_model: Path) -> None:
    steps = run_ladder(str(zoo_model), "cpu", workspace)
    assert len(steps) == 8
    assert steps[0].since is None
    summaries = [summary_of(step.run) for step in steps]
    # The same network in torch and in ONNX: the same neighbours, whoever searched.
    assert 0 < summaries[0].mean.r_at_1 == summaries[1].mean.r_at_1
    infos = [step.run.record(ReplayRecord).service for step in steps]
    assert infos[0] == {}
    assert [info["model"]["precision"] for info in infos[1:]] == ["fp32", *["int8"] * 6]
    assert infos[3]["model"]["jpeg"] == "draft"
    assert [info["index"]["quantization"] for info in infos[1:]] == [*["none"] * 3, *["scalar-int8"] * 4]
    assert [info["index"]["indexed_vectors"] > 0 for info in infos[1:]] == [*[False] * 4, *[True] * 3]
    for before, step in zip(summaries, steps[1:], strict=False):
        assert step.since is not None
        assert step.since.mean["R@1"].a == before.mean.r_at_1
    page = ladder_to_markdown(steps)
    for step in steps:
        # Among the steps, the latencies, by domain, and the changes, which the first has none of.
        assert page.count(f"| {step.point.name}") == 3 + (step.since is not None)
    assert "1-torch-fp32 ran with OMP_NUM_THREADS=" in page
    result = ladder_to_json(steps)
    assert [row["step"] for row in result] == [step.point.name for step in steps]
    assert set(result[1]["difference"]) == {"R@1", "mMP@5", "domains", "ratio"}
    assert set(result[1]["domains"]["plants"]) == {"R@1", "mMP@5"}
    assert result[1]["difference"]["domains"]["plants"]["R@1"]["a"] == result[0]["domains"]["plants"]["R@1"]
    terminal = io.StringIO()
    print_ladder(steps, Console(file=terminal, width=80))
    for step in steps:
        assert terminal.getvalue().count(step.point.name) >= 3  # not clipped, among the steps and by domain
    times = {step.run.folder: (step.run.folder / "summary.json").stat().st_mtime_ns for step in steps}
    again = run_ladder(str(zoo_model), "cpu", workspace)
    assert {step.run.folder: (step.run.folder / "summary.json").stat().st_mtime_ns for step in again} == times
    other = workspace.folder / "other"
    shutil.copytree(zoo_model, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "other"}))
    with pytest.raises(RunError, match=r"int8 .* source was \w+ and is now other"):
        run_ladder(str(other), "cpu", workspace)


def test_an_interrupted_point_is_resumed_on_the_same_port(workspace: Workspace, tmp_path: Path) -> None:
    workspace, point = replace(workspace, folder=tmp_path), Point("base", {"max_batch": "4"})
    run = measure(point, workspace)
    observations = run.observations()
    assert len(observations) == 8 + 10
    (run.folder / "summary.json").write_text('{"version": 1, "all": {"fail')
    assert not is_complete(run)
    cut_short(run, observations[:5])
    port = urlsplit(run.record(ReplayRecord).url).port
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(RunError, match=f"port {port}, which is in use"):
            measure(point, workspace)
    assert measure(point, workspace) == run
    again = run.observations()
    assert [observation.query_id for observation in again if observation.segment == 0] == [
        observation.query_id for observation in observations[:5]
    ]
    assert len(again) == len(observations)
    assert is_complete(run)
    assert port_of([Run(tmp_path / "none")]) is None
    with pytest.raises(RunError, match="queries_per_domain was None"):
        measure(point, replace(workspace, queries_per_domain=3))
    # A run with unanswered queries is incomplete.
    cut_short(run, [replace(observations[0], status=503), *observations[1:-2]])
    with pytest.raises(RunError, match="3 requests of base failed"):
        finish(run, workspace)


def test_values_with_the_same_name_are_refused(workspace: Workspace) -> None:
    for values in ("/x/a/final,/x/b/final", "final,final"):
        with pytest.raises(BenchmarkError, match="same name, final"):
            run_sweep(axes_of([f"model={values}"]), workspace)


def test_a_sweep_measures_its_grid(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = run_sweep(axes_of(["max_batch=1,4"]), replace(workspace, folder=tmp_path))
    assert [point.axes for point in points] == [{"max_batch": "1"}, {"max_batch": "4"}]
    limits = [point.run.record(ReplayRecord).service["limits"]["max_batch"] for point in points]
    assert limits == [1, 4]
    assert points[0].r_at_1 == points[1].r_at_1
    plot_sweep(points, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RunError, match=r"sweep.png cannot be written"):
        plot_sweep(points, tmp_path / "sweep.png" / "sweep.png")
    with pytest.raises(RunError, match=r"points.csv cannot be written"):
        write_points(points[0].run, summary_of(points[0].run), tmp_path / "sweep.png" / "points.csv")
    # The command reuses the runs and reports the invalid one.
    change_summary(points[0].run, valid=True, invalid_because=[])
    change_summary(points[1].run, valid=False, invalid_because=["the client lagged"])
    with pytest.raises(RunError, match="invalid: max_batch=4; remove"):
        commands.sweep(workspace.data.root, tmp_path, ["max_batch=1,4"], as_json=True)
    printed = capsys.readouterr().out
    assert "invalid: max_batch=4: the client lagged\n" in printed
    result = json.loads(printed.splitlines()[-1])["points"]
    assert [point["invalid_because"] for point in result] == [None, "the client lagged"]
    with (tmp_path / "points.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["run"], row["valid"]) for row in rows] == [("max_batch=1", "True"), ("max_batch=4", "False")]


def test_a_service_that_does_not_start_is_one_sentence(workspace: Workspace) -> None:
    with pytest.raises(BenchmarkError, match=r"UIE_MAX_BATCH"):
        measure(Point("none", {"max_batch": "0"}), workspace)
    with pytest.raises(BenchmarkError, match="`python -m service nothing` failed"):
        python_m("service", "nothing")


def test_the_papers_systems_and_the_oracle(workspace: Workspace, tmp_path: Path) -> None:
    folders = {}
    for name, kind in (("animals", "conv"), ("plants", "vit")):
        folders[name] = tmp_path / name
        export_model(tiny_trained(kind), workspace.data, folders[name])
    systems = Systems([folders["animals"]], folders)
    out = replace(workspace, folder=tmp_path / "out")
    runs = replay_systems(systems, out)
    assert list(runs) == ["animals", "plants", ORACLE]
    for name in folders:
        record = Run(out.folder / name).record(ReplayRecord)
        assert record.target.model == name == load_manifest(folders[name]).name
        assert len(Run(out.folder / name).observations()) == 8 + 20 + 10
    oracle = {observation.query_id: observation for observation in Run(out.folder / ORACLE).observations()}
    for name in folders:
        own = [
            observation for observation in Run(out.folder / name).observations() if observation.domain == name
        ]
        assert own
        for observation in own:
            assert np.array_equal(embedding_of(oracle[observation.query_id]), embedding_of(observation))
    # In the separate index of its domain, the oracle is the specialist.
    separate = {name: summary_of(run).separate for name, run in runs.items()}
    for name in folders:
        oracle_scores, scores = separate[ORACLE], separate[name]
        assert oracle_scores
        assert scores
        assert oracle_scores.domains[name].r_at_1 == scores.domains[name].r_at_1
    # Interrupted in the second: the run is resumed, on the same port.
    plants = Run(out.folder / "plants")
    observations = plants.observations()
    cut_short(plants, observations[:7])
    assert list(replay_systems(systems, out)) == list(runs)
    assert [observation.query_id for observation in plants.observations() if observation.segment == 0] == [
        observation.query_id for observation in observations[:7]
    ]
    assert len(plants.observations()) == len(observations)
    change_summary(plants, valid=False, invalid_because=["the client lagged"])
    page = systems_markdown(runs)
    assert "\n| plants! | " in page
    assert page.endswith("\ninvalid: plants: the client lagged\n")
    swapped = {"animals": folders["plants"], "plants": folders["animals"]}
    with pytest.raises(RunError, match=r"oracle .* specialists was"):
        replay_systems(Systems([folders["animals"]], swapped), out)
    shutil.copytree(folders["animals"], tmp_path / "again")
    with pytest.raises(RunError, match="two models have the same name"):
        replay_systems(Systems([folders["animals"], tmp_path / "again"], {}), out)
    with pytest.raises(RunError, match="is not a model folder"):
        replay_systems(Systems([tmp_path], {}), out)
    some = Systems([], {"animals": folders["animals"]})
    with pytest.raises(RunError, match="missing: plants"):
        replay_systems(some, out)
    assert json.loads((out.folder / ORACLE / "run.json").read_text())["made_of"] == {
        name: name for name in folders
    }
