"""The report of a run: the page, its parts, and the Markdown."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.replay.results import Rankings, replayed
from benchmarks.replay.summary import rounded, summarise
from benchmarks.reports import markdown, write_html
from benchmarks.reports.failures import worst_failures
from benchmarks.reports.plots import Tick, percentile_plot, timeline
from benchmarks.reports.thumbnails import thumbnail
from benchmarks.runs.run import Run
from tests.conftest import ROOT
from tests.support.observed import seen
from tests.support.pictures import encode, exif, quadrants
from tests.support.reported import LABEL, A, B, Q, a_run

Reported = tuple[Run, Dataset, dict[str, Any]]
_VOID = {"meta", "link", "img", "polyline", "line"}


class Page(HTMLParser):
    """What a browser would see: well nested tags, their attributes, and the text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(file.read_text())
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture
def reported(tmp_path: Path) -> Reported:
    return a_run(tmp_path)


def page_of(reported: Reported) -> Page:
    run, data, summary = reported
    return Page(write_html(replayed(run, data), summary))


def test_the_page_needs_nothing_else(reported: Reported) -> None:
    page = page_of(reported)
    outside = [
        (tag, name, value)
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action") and not value.startswith(("data:", "#"))
    ]
    assert outside == []
    assert "script" not in {tag for tag, _ in page.tags}  # a label would be one
    style = (ROOT / "benchmarks" / "reporting" / "style.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_what_data_sets_and_services_say_is_text(reported: Reported) -> None:
    page = page_of(reported)
    assert LABEL in page.text
    assert "a <model>" in page.text
    assert "queue | <full>" in page.text
    assert {"model", "full"}.isdisjoint(tag for tag, _ in page.tags)


def test_the_page_says_what_was_measured_and_whether_it_counts(reported: Reported) -> None:
    page = page_of(reported)
    text = " ".join(page.text.split())
    for wanted in ("Mean R@1 12.5", "0123456789abcdef", "ClosedLoop, 4 at a time", "a CPU", "23:50 UTC"):
        assert wanted in text, wanted
    assert "git checkout abc1234 # and what was changed and not committed" in text
    assert "Valid." in text


def test_every_picture_says_what_it_is_and_a_missing_one_is_a_placeholder(reported: Reported) -> None:
    page = page_of(reported)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert pictures
    assert all(one["alt"] and one["src"].startswith("data:image/webp;base64,") for one in pictures)
    assert f"query: a, {LABEL}" in [one["alt"] for one in pictures]
    gone = [attributes for _, attributes in page.tags if attributes.get("class") == "gone"]
    assert [one["title"] for one in gone] == [B[2], B[2]]  # a hit twice


def test_a_run_that_is_not_whole_is_reported_as_such(reported: Reported) -> None:
    run, data, _ = reported
    lines = (run.folder / "observations-000-00.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "observations-000-00.jsonl").write_text("".join(lines[:2]))
    text = " ".join(page_of((run, data, summarise(data, run))).text.split())
    assert (
        "Not valid. The run is not whole: 3 of 5 queries were not asked yet; replay again to go on." in text
    )


def test_a_run_without_any_answer_is_reported(reported: Reported) -> None:
    run, data, _ = reported
    (run.folder / "observations-000-00.jsonl").write_text("")
    text = " ".join(page_of((run, data, summarise(data, run))).text.split())
    assert "No query was answered." in text


def test_the_worst_failures(reported: Reported) -> None:
    run, data, _ = reported
    rankings: Rankings = {one.query_id: one.hit_ids for one in run.observations()}
    found = worst_failures(data, run.said(), rankings, per_domain=4)
    # One of each label: of the cats A[1], of the dogs A[2]. Another domain comes before another label.
    assert [(one.query.id, one.right) for one in found["a"]] == [
        (A[2], (False, True)),
        (A[1], (False, False, False)),
    ]
    assert [one.missed and one.missed.id for one in found["a"]] == [None, A[0]]
    assert [(one.query.id, one.missed and one.missed.id) for one in found["b"]] == [(Q, B[0])]
    assert [one.query.id for one in worst_failures(data, run.said(), rankings, 1)["a"]] == [A[2]]


def test_a_hit_that_is_not_in_the_gallery_is_a_wrong_one(reported: Reported) -> None:
    run, data, _ = reported
    found = worst_failures(data, run.said(), {A[0]: ["z/test/9"]}, per_domain=1)
    (failure,) = found["a"]
    assert (failure.hits[0].id, failure.hits[0].domain, failure.right) == ("z/test/9", "z", (False,))


def test_percentiles_lie_on_a_log_axis() -> None:
    latencies_s = [0.001 * (n + 1) for n in range(100)]
    plot = percentile_plot([seen(A[0], [], 0.0, took_s) for took_s in latencies_s])
    assert plot is not None
    assert [(round(tick.at, 1), tick.text) for tick in plot.x_ticks] == [
        (0.0, "0"),
        (15.1, "50"),  # half a decade's log: log10(2) / 2
        (50.0, "90"),
        (100.0, "99"),
    ]
    assert plot.y_ticks[-1] == Tick(0.0, "100")
    first, last = plot.lines[""].split()[0], plot.lines[""].split()[-1]
    assert first == "0.00,99.00"  # 1 ms of 100
    assert last == "100.00,0.99"  # the 99th percentile: 99.01 ms
    assert plot.lines["a"] == plot.lines[""]


def test_time_goes_on_where_a_run_was_resumed() -> None:
    before = [seen(A[0], [], 0.1 * n, 0.1) for n in range(40)]  # until 4.0 s
    after = [seen(A[1], [], 0.1 * n, 0.1, segment=3) for n in range(39)]  # for 3.9 s
    failed = seen(A[2], [], 3.9, 0.1, segment=3, status=500)
    found = timeline([*before, *after, failed])
    assert found is not None
    assert found.resumed == [50.0]
    assert found.failures == [100.0]
    assert found.slice_s == pytest.approx(8 / 3)  # 79 answers: three slices of at least 20
    assert found.rate.x_ticks[-1] == Tick(100.0, "8")


def test_a_thumbnail_is_small_and_upright(tmp_path: Path) -> None:
    file = tmp_path / "turned.jpg"
    file.write_bytes(encode(quadrants(), "JPEG", exif=exif(6)))  # 300 x 200, to be turned right
    uri = thumbnail(file)
    assert uri is not None
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert image.size == (75, 112)
        red, green, blue = image.convert("RGB").getpixel((70, 5))  # type: ignore[misc]  # a tuple of RGB's
    assert red > 200
    assert max(green, blue) < 60


def test_no_thumbnail_of_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    assert thumbnail(tmp_path / "text.png") is None
    assert thumbnail(tmp_path / "nothing.png") is None


def test_markdown_has_the_figures_and_no_markup_of_others(reported: Reported) -> None:
    run, _, summary = reported
    text = markdown(run, summary)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| a ")]
    assert rows[0][1:4] == ["4", "4", "25.0 (0.0 – 75.0)"]  # noqa: RUF001
    assert "&lt;model>" in text
    assert "<" not in text
    # Every table has as many cells in each row as in its head.
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_command_writes_it_all_from_any_folder(
    reported: Reported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, _ = reported
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", str(run.folder), "--markdown", "--json"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("## a &lt;model> on data set\n")
    assert json.loads(done.output.splitlines()[-1])["mean"]["R@1"] == 0.125
    written = {str(file.relative_to(run.folder)) for file in run.folder.rglob("*.*")}
    assert written >= {"report.html", "summary.json", "points.csv", "latency.hlog", "mteb/a.json"}


def test_reference_rounding_comes_before_the_mean_and_not_into_the_files(reported: Reported) -> None:
    run, _, summary = reported
    thirds = {"a": {"R@1": 1 / 3, "mMP@5": 0.5}, "b": {"R@1": 1 / 4, "mMP@5": 0.0}}
    mean = {"R@1": 7 / 24, "R@1_interval": [0.0, 1.0], "mMP@5": 0.25}
    found = rounded({"domains": thirds, "mean": mean, "separate": {"domains": thirds, "mean": mean}})
    assert found["domains"]["a"] == {"R@1": 0.333, "mMP@5": 0.5}
    assert found["mean"] == {"R@1": pytest.approx(0.2915), "R@1_interval": [0.0, 1.0], "mMP@5": 0.25}
    assert found["separate"]["mean"] == found["mean"]
    done = CliRunner().invoke(app, ["report", str(run.folder), "--reference-rounding", "--json"])
    assert done.exit_code == 0, done.output
    assert "each domain was rounded to 3 decimals before averaging" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == rounded(summary)
    assert json.loads((run.folder / "summary.json").read_text()) == summary
