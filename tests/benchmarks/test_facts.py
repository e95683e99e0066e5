"""A run in words: how it searched, and the commands that repeat it, read again by the commands themselves."""

import shlex
from dataclasses import asdict
from typing import Any

import pytest
import typer.main

from benchmarks.__main__ import app
from benchmarks.load.scenarios import ScenarioName, scenario_row
from benchmarks.reports.text import facts, repeat
from tests.support.reported import SAID


def options(line: str) -> dict[str, Any]:
    """What the command makes of `python -m benchmarks VERB ...`."""
    python, _, module, verb, *words = shlex.split(line.replace("\\\n", " "))
    assert (python, module) == ("python", "benchmarks")
    command = typer.main.get_group(app).commands[verb]
    return command.make_context(verb, words).params


def said_of(kind: str, name: ScenarioName, **changes: Any) -> dict[str, Any]:
    rate = 2.5 if name == "Server" else None
    scenario = asdict(scenario_row(name, 3, rate, 7, in_bulk=kind == "uie"))
    target = {**SAID["target"], "kind": kind}
    return {**SAID, "scenario": scenario, "target": target, "data": "/data", **changes}


@pytest.mark.parametrize("kind", ["uie", "openai", "post"])
@pytest.mark.parametrize("name", ["SingleStream", "MultiStream", "Server", "Offline", "ClosedLoop"])
def test_repeated_it_is_the_same_scenario(kind: str, name: ScenarioName) -> None:
    said = said_of(kind, name)
    asked = options(repeat(said)[-2])
    again = scenario_row(name, asked["concurrency"], asked["rate"], asked["seed"], in_bulk=kind == "uie")
    assert asdict(again) | {"seed": 0} == said["scenario"] | {"seed": 0}
    assert name != "Server" or again.seed == 7


def test_repeated_it_is_the_same_url_split_and_body() -> None:
    url, body = "http://127.0.0.1:1/a?b=c&d='e f'", '{"image": "{base64}"}'
    said = said_of("uie", "ClosedLoop", url=url, split="val", self_exclusion="position", exact=False, ef=9)
    _, index, replay, _ = repeat(said)
    assert {name: options(index)[name] for name in ("url", "split")} == {"url": url, "split": "val"}
    asked = options(replay)
    wanted = {"url": url, "split": "val", "self_exclusion": "position", "exact": False, "ef": 9, "k": 10}
    assert {name: asked[name] for name in wanted} == wanted
    said = said_of("post", "Offline", url=url)
    said["target"] |= {"body": body, "vector": "data.0"}
    asked = options(repeat(said)[-2])
    assert (asked["body"], asked["vector"], asked["url"]) == (body, "data.0", url)


def test_who_searched_is_said() -> None:
    hnsw = {"exact": False, "ef": 32}
    assert facts(said_of("uie", "ClosedLoop", **hnsw))["Search"] == "qdrant-edge, HNSW, ef 32, k 10, merged"
    assert facts(said_of("uie", "Server"))["Search"] == "qdrant-edge, exact, k 10, merged"
    for said in (said_of("uie", "Offline", **hnsw), said_of("post", "ClosedLoop", service={}, **hnsw)):
        assert facts(said)["Search"] == "the harness's own, exact, merged"
