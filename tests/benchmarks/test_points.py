"""Operating points on live services: the ladder, a sweep, the paper's systems; the pure parts by hand."""

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
from benchmarks.files import write_whole
from benchmarks.load.driver import Client
from benchmarks.operating_points.claim import claim, model_of
from benchmarks.operating_points.ladder import ladder, print_ladder, steps, to_json, to_markdown
from benchmarks.operating_points.point import (
    Point,
    Workplace,
    finish,
    is_whole,
    measure,
    port_of,
    python_m,
    summary_of,
    variables,
    write_rows,
)
from benchmarks.operating_points.strategies import ORACLE, Systems, replay_systems
from benchmarks.operating_points.strategies import to_markdown as systems_markdown
from benchmarks.operating_points.sweep import Place, axes_of, front, plot_sweep, sweep
from benchmarks.replay.results import embedding_of
from benchmarks.runs.run import PACKED, Observation, Run, to_line
from model_export.export.fp32 import export_model
from service.manifest import load_manifest
from tests.support.shapes import SHAPES, draw
from tests.support.tiny import tiny_data, tiny_trained

QUIET = Console(quiet=True)
COLOURS = ((200, 30, 30), (40, 60, 210))
pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A data set of 56 pictures, and where the runs go."""
    data = tiny_data(tmp_path_factory.mktemp("data"))
    for domain, shift in (("animals", 0), ("plants", 1)):  # noise instead would leave nothing to find
        for split in data.splits(domain):
            for seed, record in enumerate(data.records(domain, split)):
                shape, colour = SHAPES[(record.class_ids[0] + shift) % 3], COLOURS[record.class_ids[0] % 2]
                draw(seed, shape, colour).save(data.image(record))
    return Workplace(data, tmp_path_factory.mktemp("points"), None, Client(warm_up=2), QUIET)


def cut_short(run: Run, observations: Sequence[Observation]) -> None:
    """The run as it is on disk when it was interrupted after these."""
    (run.folder / PACKED).unlink()
    (run.folder / "summary.json").unlink()
    lines = "".join(map(to_line, observations))
    (run.folder / "observations-000-00.jsonl").write_text(lines)


def change_summary(run: Run, **said: Any) -> None:
    """As if the run had come out otherwise."""
    (run.folder / "summary.json").write_text(json.dumps({**summary_of(run), **said}))


def test_each_step_keeps_what_the_one_before_has() -> None:
    models = {"int8": Path("a"), "int8-draft": Path("b")}
    torch, onnx, int8, draft, quantized, *graphs = steps("zoo", "cpu", models)
    assert torch.naive == "zoo"
    assert list(torch.environment) == ["OMP_NUM_THREADS"]
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
    assert 0 < summaries[0]["mean"]["R@1"] == summaries[1]["mean"]["R@1"]
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
        # Among the steps, the latencies, by domain, and the changes, which the first has none of.
        assert page.count(f"| {rung.point.name}") == 3 + (rung.since is not None)
    assert "1-torch-fp32 ran with OMP_NUM_THREADS=" in page
    said = to_json(rungs)
    assert [one["step"] for one in said] == [rung.point.name for rung in rungs]
    assert set(said[1]["difference"]) == {"R@1", "mMP@5", "domains", "ratio"}
    assert set(said[1]["domains"]["plants"]) == {"R@1", "mMP@5"}
    assert said[1]["difference"]["domains"]["plants"]["R@1"]["a"] == said[0]["domains"]["plants"]["R@1"]
    terminal = io.StringIO()
    print_ladder(rungs, Console(file=terminal, width=80))
    for rung in rungs:
        assert terminal.getvalue().count(rung.point.name) >= 3  # whole among the steps, and by domain
    times = {rung.run.folder: (rung.run.folder / "summary.json").stat().st_mtime_ns for rung in rungs}
    again = ladder(str(zoo_model), "cpu", place)
    assert {one.run.folder: (one.run.folder / "summary.json").stat().st_mtime_ns for one in again} == times
    other = place.folder / "other"
    shutil.copytree(zoo_model, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "other"}))
    with pytest.raises(RunError, match=r"int8 is of something else: source is \w+ there and other now"):
        ladder(str(other), "cpu", place)


def test_a_step_that_was_begun_goes_on_where_its_service_was(place: Workplace, tmp_path: Path) -> None:
    place, point = replace(place, folder=tmp_path), Point("one", {"max_batch": "4"})
    run = measure(point, place)
    seen = run.observations()
    assert len(seen) == 8 + 10
    (run.folder / "summary.json").write_text('{"all": {"fail')
    assert not is_whole(run)
    cut_short(run, seen[:5])
    port = urlsplit(run.said()["url"]).port
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(RunError, match=f"was begun on port {port}, which is in use"):
            measure(point, place)
    assert measure(point, place) == run
    again = run.observations()
    assert [one.query_id for one in again if one.segment == 0] == [one.query_id for one in seen[:5]]
    assert len(again) == len(seen)
    assert is_whole(run)
    assert port_of([Run(tmp_path / "none")]) is None
    with pytest.raises(RunError, match="queries_per_domain is None there and 3 now; use another --out"):
        measure(point, replace(place, queries_per_domain=3))
    # What has no answer is no measurement.
    cut_short(run, [replace(one, status=503) for one in seen[:1]] + seen[1:-2])
    with pytest.raises(RunError, match="3 requests of one failed"):
        finish(run, place)


def test_what_is_there_must_be_what_is_asked_for(tmp_path: Path, zoo_model: Path) -> None:
    file, made = tmp_path / "run" / "point.json", tmp_path / "run" / "run.json"
    claim(file, {"ef": 32}, made)
    claim(file, {"ef": 64}, made)  # nothing was measured yet
    made.touch()
    claim(file, {"ef": 64}, made)
    with pytest.raises(RunError, match="run is of something else: ef is 64 there and 32 now; use another"):
        claim(file, {"ef": 32}, made)
    for damage in ("{", "[1]"):
        file.write_text(damage)
        with pytest.raises(RunError, match="is not known"):
            claim(file, {"ef": 64}, made)
    said = json.loads((zoo_model / "manifest.json").read_text())["fingerprint"]
    assert model_of(f"{zoo_model},default") == f"{said},default"
    with pytest.raises(RunError, match="cannot be written"):
        write_whole(made / "page.md", "")


def test_the_front_is_what_no_other_point_beats() -> None:
    figures = {"slow": (0.6, 90, 10), "best": (0.6, 80, 20), "fast": (0.5, 40, 50), "worse": (0.4, 60, 40)}
    places = [Place({"at": name}, Run(Path(name)), *three) for name, three in figures.items()]
    assert [one.at["at"] for one in front(places, "p99_ms")] == ["best", "fast"]
    assert [one.at["at"] for one in front(places, "images_per_s")] == ["best", "fast"]
    lagged = replace(places[1], r_at_1=0.9, invalid_because="the client lagged")
    assert [one.at["at"] for one in front([*places, lagged], "p99_ms")] == ["best", "fast"]


def test_values_of_one_name_are_refused(place: Workplace) -> None:
    for values in ("/x/a/final,/x/b/final", "final,final"):
        with pytest.raises(BenchmarkError, match="two values of model have one name, final"):
            sweep(axes_of([f"model={values}"]), place)


def test_a_sweep_measures_its_grid(
    place: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = sweep(axes_of(["max_batch=1,4"]), replace(place, folder=tmp_path))
    assert [one.at for one in places] == [{"max_batch": "1"}, {"max_batch": "4"}]
    limits = [one.run.said()["service"]["limits"]["max_batch"] for one in places]
    assert limits == [1, 4]
    assert places[0].r_at_1 == places[1].r_at_1
    plot_sweep(places, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    nowhere = tmp_path / "nowhere"
    with pytest.raises(RunError, match=r"sweep.png cannot be written"):
        plot_sweep(places, nowhere / "sweep.png")
    with pytest.raises(RunError, match=r"points.csv cannot be written"):
        write_rows([places[0].run], tmp_path / "sweep.png" / "points.csv")
    # The verb takes them as they are, and says which one must not be believed.
    change_summary(places[0].run, valid=True, invalid_because=[])
    change_summary(places[1].run, valid=False, invalid_because=["the client lagged"])
    with pytest.raises(RunError, match="invalid: max_batch=4; without"):
        commands.sweep(place.data.root, tmp_path, ["max_batch=1,4"], as_json=True)
    printed = capsys.readouterr().out
    assert "invalid: max_batch=4: the client lagged\n" in printed
    said = json.loads(printed.splitlines()[-1])["points"]
    assert [one["invalid_because"] for one in said] == [None, "the client lagged"]
    with (tmp_path / "points.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["run"], row["valid"]) for row in rows] == [("max_batch=1", "True"), ("max_batch=4", "False")]


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
    separate = summary_of(found[ORACLE])["separate"]["domains"]
    for name in folders:
        assert separate[name]["R@1"] == summary_of(found[name])["separate"]["domains"][name]["R@1"]
    # Interrupted in the second: it goes on from there, at the same port.
    plants = Run(out.folder / "plants")
    seen = plants.observations()
    cut_short(plants, seen[:7])
    assert list(replay_systems(systems, out)) == list(found)
    assert [one.query_id for one in plants.observations() if one.segment == 0] == [
        one.query_id for one in seen[:7]
    ]
    assert len(plants.observations()) == len(seen)
    change_summary(plants, valid=False, invalid_because=["the client lagged"])
    page = systems_markdown(found)
    assert "\n| plants! | " in page
    assert page.endswith("\ninvalid: plants: the client lagged\n")
    swapped = {"animals": folders["plants"], "plants": folders["animals"]}
    with pytest.raises(RunError, match="oracle is of something else: specialists is"):
        replay_systems(Systems([folders["animals"]], swapped), out)
    shutil.copytree(folders["animals"], tmp_path / "again")
    with pytest.raises(RunError, match="two models have one name"):
        replay_systems(Systems([folders["animals"], tmp_path / "again"], {}), out)
    with pytest.raises(RunError, match="is not a model folder"):
        replay_systems(Systems([tmp_path], {}), out)
    some = Systems([], {"animals": folders["animals"]})
    with pytest.raises(RunError, match="there is none of plants"):
        replay_systems(some, out)
    assert json.loads((out.folder / ORACLE / "run.json").read_text())["made_of"] == {
        name: name for name in folders
    }
