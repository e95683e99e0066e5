"""The page of metrics and the container files agree with the code."""

import re
from fnmatch import fnmatch

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry

from service import metrics
from service.metrics import IndexItems, Metrics, Processes
from service.settings import Settings
from tests.support.paths import ROOT


def test_the_page_lists_each_metric_with_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    monkeypatch.setattr(metrics, "CollectorRegistry", lambda: registry)
    Metrics()
    metrics_of_code = {}
    for collector in [*registry._collector_to_names, Processes(), IndexItems({"d": 1})]:
        for family in collector.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = set(vars(collector).get("_labelnames", ())).union(
                *(s.labels for s in family.samples)
            ) - {"le"}
            metrics_of_code[name] = (family.type, labels)
    rows = re.findall(
        r"^\| `((?:uie|process)_\w+)` \| (\w+)[^;|]*;?([^|]*)\|", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    page = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert page == metrics_of_code


def test_the_image_copies_existing_files_and_sets_existing_settings() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) \S+$", dockerfile, re.MULTILINE)
    assert len(copied) == 6
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:].removesuffix("/**") for line in ignore if line.startswith("!")]
    for source in copied:
        assert (ROOT / source).exists()
        assert any(fnmatch(source, pattern) for pattern in kept)
    for name in re.findall(r"\bUIE_(\w+)=", dockerfile):
        assert name.lower() in Settings.model_fields


def test_compose_sets_existing_settings() -> None:
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    settings = {name.removeprefix("UIE_").lower() for name in services["service"]["environment"]}
    assert settings == {"qdrant_url", "workers"}
    assert settings <= set(Settings.model_fields)
    assert (
        f"FROM base AS {services['service']['build']['target']}\n" in (ROOT / "docker/Dockerfile").read_text()
    )
