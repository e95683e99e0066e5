"""A run in words: its search, and the commands that repeat it, parsed by the commands themselves."""

import shlex
from dataclasses import replace
from typing import Any

import pytest
import typer.main

from benchmarks.__main__ import app
from benchmarks.load.scenarios import ScenarioName, scenario_row
from benchmarks.replay.records import ReplayRecord
from benchmarks.reports.text import facts, repeat, settings
from benchmarks.targets.target import Target, TargetKind
from tests.support.reported import REPORTED


def options(line: str) -> dict[str, Any]:
    """The options that the command parses from `python -m benchmarks VERB ...`."""
    python, _, module, verb, *words = shlex.split(line.replace("\\\n", " "))
    assert (python, module) == ("python", "benchmarks")
    command = typer.main.get_group(app).commands[verb]
    return command.make_context(verb, words).params


def record_of(kind: TargetKind, name: ScenarioName, **changes: Any) -> ReplayRecord:
    rate = 2.5 if name == "Server" else None
    scenario = scenario_row(name, 3, rate, 7, in_bulk=kind == "uie")
    target = replace(REPORTED.target, kind=kind)
    return replace(REPORTED, **{"scenario": scenario, "target": target, "data": "/data", **changes})


@pytest.mark.parametrize("kind", ["uie", "openai", "post"])
@pytest.mark.parametrize("name", ["SingleStream", "MultiStream", "Server", "Offline", "ClosedLoop"])
def test_the_commands_repeat_the_scenario(kind: TargetKind, name: ScenarioName) -> None:
    record = record_of(kind, name)
    parsed = options(repeat(record)[-2])
    again = scenario_row(name, parsed["concurrency"], parsed["rate"], parsed["seed"], in_bulk=kind == "uie")
    assert replace(again, seed=0) == replace(record.scenario, seed=0)
    assert name != "Server" or again.seed == 7


def test_the_commands_repeat_url_split_and_body() -> None:
    url, body = "http://127.0.0.1:1/a?b=c&d='e f'", '{"image": "{base64}"}'
    changes = {"split": "val", "self_exclusion": "position", "exact": False, "ef": 9}
    _, index, replay, _ = repeat(record_of("uie", "ClosedLoop", url=url, **changes))
    assert {name: options(index)[name] for name in ("url", "split")} == {"url": url, "split": "val"}
    wanted = {"url": url, "k": 10, **changes}
    assert {name: options(replay)[name] for name in wanted} == wanted
    target = Target("post", url, body=body, vector="data.0")
    parsed = options(repeat(record_of("post", "Offline", url=url, target=target))[-2])
    assert (parsed["body"], parsed["vector"], parsed["url"]) == (body, "data.0", url)


def test_settings_list_the_models_only_if_there_are_several() -> None:
    model = {"name": "m", "fingerprint": "f", "dim": 64, "domains": {"a": 2}}
    other = {**model, "fingerprint": "g"}
    for models, names in (([model], set()), ([model, other], {"models.0.name", "models.1.fingerprint"})):
        record = replace(REPORTED, service={"model": model, "models": models})
        rows = settings(record)
        assert rows["model.domains.a"] == "2"
        assert {name for name in rows if name in ("models.0.name", "models.1.fingerprint")} == names
        assert len(record.info.models) == len(models)


def test_facts_name_the_search() -> None:
    hnsw = {"exact": False, "ef": 32}
    assert facts(record_of("uie", "ClosedLoop", **hnsw))["Search"] == "qdrant-edge, HNSW, ef 32, k 10, merged"
    assert facts(record_of("uie", "Server"))["Search"] == "qdrant-edge, exact, k 10, merged"
    for record in (record_of("uie", "Offline", **hnsw), record_of("post", "ClosedLoop", service={}, **hnsw)):
        assert facts(record)["Search"] == "by the harness, exact, merged"
