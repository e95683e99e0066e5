"""Operating points on live services: the ladder, a sweep, the paper's systems; the pure parts by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.errors import BenchmarkError, RunError
from benchmarks.load.drive import Client
from benchmarks.points.ladder import ladder, steps, to_json, to_markdown
from benchmarks.points.point import Point, Workplace, measure, python_m, summary_of, variables
from benchmarks.points.strategies import ORACLE, Systems, replay_systems
from benchmarks.points.sweep import Place, axes_of, front, plot_sweep, point_at, sweep
from benchmarks.rankings import embedding_of
from benchmarks.runs import Run
from model_export.export import export_model
from service.manifest import load_manifest
from tests.tiny import tiny_data, tiny_trained

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A data set of 56 pictures, and where the runs go."""
    data = tiny_data(tmp_path_factory.mktemp("data"))
    return Workplace(data, tmp_path_factory.mktemp("points"), None, Client(warm_up=2), QUIET)


def test_each_step_keeps_what_the_one_before_has() -> None:
    models = {"int8": Path("a"), "int8-draft": Path("b")}
    torch, onnx, int8, draft, quantized, *graphs = steps("zoo", "cpu", models)
    assert torch.naive == "zoo"
    assert (onnx.settings["model"], onnx.exact, onnx.naive) == ("zoo", True, None)
    assert (int8.settings["model"], draft.settings["model"]) == ("a", "b")
    assert quantized.settings == {**draft.settings, "index_quantization": "scalar-int8"}
    assert not quantized.exact
    assert [(one.ef, one.graph, one.settings) for one in graphs] == [
        (ef, True, quantized.settings) for ef in (256, 64, 32)
    ]


def test_the_ladder_is_climbed_once_on_live_services(place: Workplace, zoo_model: Path) -> None:
    rungs = ladder(str(zoo_model), "cpu", place)
    assert len(rungs) == 8
    assert rungs[0].since is None
    summaries = [summary_of(rung.run) for rung in rungs]
    # The same network in torch and in ONNX: the same neighbours, whoever searched.
    assert summaries[0]["mean"]["R@1"] == summaries[1]["mean"]["R@1"]
    infos = [rung.run.said()["service"] for rung in rungs]
    assert infos[0] == {}
    assert [info["model"]["precision"] for info in infos[1:]] == ["fp32", *["int8"] * 6]
    assert infos[3]["model"]["jpeg"] == "draft"
    assert [info["index"]["quantization"] for info in infos[1:]] == [*["none"] * 3, *["scalar-int8"] * 4]
    assert [info["index"]["indexed_vectors"] > 0 for info in infos[1:]] == [*[False] * 4, *[True] * 3]
    for before, rung in zip(summaries, rungs[1:], strict=False):
        assert rung.since is not None
        assert rung.since.mean["R@1"].a == before["mean"]["R@1"]
    page = to_markdown(rungs)
    for rung in rungs:
        assert page.count(f"| {rung.point.name} |") == 2  # among the steps, and by domain
    assert [one["step"] for one in to_json(rungs)] == [rung.point.name for rung in rungs]
    times = {rung.run.folder: (rung.run.folder / "summary.json").stat().st_mtime_ns for rung in rungs}
    again = ladder(str(zoo_model), "cpu", place)
    assert {one.run.folder: (one.run.folder / "summary.json").stat().st_mtime_ns for one in again} == times


def test_axes_are_read_and_refused() -> None:
    assert axes_of(["max_batch=4,16", "UIE_LANES=1"]) == {"max_batch": ["4", "16"], "lanes": ["1"]}
    with pytest.raises(BenchmarkError, match="an axis is written"):
        axes_of(["max_batch"])
    point = point_at({"max_batch": "4", "concurrency": "2", "ef": "64"})
    assert (point.settings, point.streams, point.ef) == ({"max_batch": "4"}, 2, 64)
    assert (point.exact, point.graph) == (False, True)  # an ef is of HNSW
    assert point_at({"exact": "true"}).exact
    for wrong in ({"ef": "many"}, {"exact": "perhaps"}):
        with pytest.raises(BenchmarkError, match="no value for its axis"):
            point_at(wrong)


def test_the_front_is_what_no_other_point_beats() -> None:
    figures = {"slow": (0.6, 90, 10), "best": (0.6, 80, 20), "fast": (0.5, 40, 50), "worse": (0.4, 60, 40)}
    places = [Place({"at": name}, Run(Path(name)), *three) for name, three in figures.items()]
    assert [one.at["at"] for one in front(places, "p99_ms")] == ["best", "fast"]
    assert [one.at["at"] for one in front(places, "images_per_s")] == ["best", "fast"]


def test_a_sweep_measures_its_grid(place: Workplace, tmp_path: Path) -> None:
    places = sweep(axes_of(["max_batch=1,4"]), replace(place, folder=tmp_path))
    assert [one.at for one in places] == [{"max_batch": "1"}, {"max_batch": "4"}]
    limits = [one.run.said()["service"]["limits"]["max_batch"] for one in places]
    assert limits == [1, 4]
    assert places[0].r_at_1 == places[1].r_at_1
    plot_sweep(places, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_point_whose_service_does_not_start_is_one_sentence(place: Workplace) -> None:
    with pytest.raises(BenchmarkError, match=r"UIE_MAX_BATCH"):
        measure(Point("none", {"max_batch": "0"}), place)
    with pytest.raises(BenchmarkError, match="`python -m service nothing` failed"):
        python_m("service", "nothing", environment=variables({}))


def test_the_papers_systems_and_the_oracle(place: Workplace, tmp_path: Path) -> None:
    folders = {}
    for name, kind in (("animals", "conv"), ("plants", "vit")):
        folders[name] = tmp_path / name
        export_model(tiny_trained(kind), place.data, folders[name])
    systems = Systems([folders["animals"]], folders)
    out = replace(place, folder=tmp_path / "out")
    found = replay_systems(systems, out)
    assert list(found) == ["animals", "plants", ORACLE]
    for name in folders:
        info = Run(out.folder / name).said()
        assert info["target"]["model"] == name == load_manifest(folders[name]).name
        assert len(Run(out.folder / name).observations()) == 8 + 20 + 10
    oracle = {one.query_id: one for one in Run(out.folder / ORACLE).observations()}
    for name in folders:
        own = [one for one in Run(out.folder / name).observations() if one.domain == name]
        assert own
        for one in own:
            assert np.array_equal(embedding_of(oracle[one.query_id]), embedding_of(one))
    # In its own index a specialist is all there is to the oracle.
    separate = found[ORACLE]["separate"]["domains"]
    for name in folders:
        assert separate[name]["R@1"] == found[name]["separate"]["domains"][name]["R@1"]
    with pytest.raises(RunError, match="is not a model folder"):
        replay_systems(Systems([tmp_path], {}), out)
    some = Systems([], {"animals": folders["animals"]})
    with pytest.raises(RunError, match="there is none of plants"):
        replay_systems(some, out)
    assert json.loads((out.folder / ORACLE / "run.json").read_text())["made_of"] == {
        name: name for name in folders
    }
