"""The report of a run: the page, its parts, and the Markdown."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.replay.records import RunSummary, ScopeSummary
from benchmarks.replay.results import Rankings, ranked_run
from benchmarks.replay.summary import rounded, summarise
from benchmarks.reports import markdown, write_html
from benchmarks.reports.failures import worst_failures
from benchmarks.reports.plots import Tick, percentile_plot, timeline
from benchmarks.reports.thumbnails import thumbnail
from benchmarks.runs.records import read_record, to_json
from benchmarks.runs.run import Run
from tests.support.images import encode, exif, quadrants
from tests.support.observed import seen
from tests.support.page import Page
from tests.support.paths import ROOT
from tests.support.reported import LABEL, A, B, Q, a_run

Reported = tuple[Run, Dataset, RunSummary]


@pytest.fixture
def reported(tmp_path: Path) -> Reported:
    return a_run(tmp_path)


def page_of(reported: Reported) -> Page:
    run, data, summary = reported
    return Page(write_html(ranked_run(run, data), summary))


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
    style = (ROOT / "benchmarks" / "reports" / "style.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_text_of_data_sets_and_services_is_escaped(reported: Reported) -> None:
    page = page_of(reported)
    assert LABEL in page.text
    assert "a <model>" in page.text
    assert "queue | <full>" in page.text
    assert {"model", "full"}.isdisjoint(tag for tag, _ in page.tags)


def test_the_page_describes_the_run_and_its_verdict(reported: Reported) -> None:
    page = page_of(reported)
    text = page.text
    for wanted in ("Mean R@1 12.5", "0123456789abcdef", "ClosedLoop, concurrency 4", "a CPU", "23:50 UTC"):
        assert wanted in text, wanted
    assert "git checkout abc1234 # plus uncommitted changes" in text
    assert "Valid." in text


def test_every_image_has_a_description_and_a_missing_one_is_a_placeholder(reported: Reported) -> None:
    page = page_of(reported)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images
    assert all(image["alt"] and image["src"].startswith("data:image/webp;base64,") for image in images)
    assert f"query: a, {LABEL}" in [image["alt"] for image in images]
    missing = [attributes for _, attributes in page.tags if attributes.get("class") == "missing"]
    assert [image["title"] for image in missing] == [B[2], B[2]]  # a hit twice


def test_a_label_that_may_be_truncated_has_a_title(reported: Reported) -> None:
    page = page_of(reported)
    clipped = [attributes for _, attributes in page.tags if "clip" in attributes.get("class", "").split()]
    assert clipped
    assert all(attributes.get("title") for attributes in clipped)


def test_an_incomplete_run_is_reported_as_such(reported: Reported) -> None:
    run, data, _ = reported
    lines = (run.folder / "observations-000-00.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "observations-000-00.jsonl").write_text("".join(lines[:2]))
    text = page_of((run, data, summarise(data, run))).text
    assert "Not valid. The run is incomplete: 3 of 5 queries were not sent" in text


def test_a_run_without_any_answer_is_reported(reported: Reported) -> None:
    run, data, _ = reported
    (run.folder / "observations-000-00.jsonl").write_text("")
    text = page_of((run, data, summarise(data, run))).text
    assert "No query was answered." in text


def test_the_worst_failures(reported: Reported) -> None:
    run, data, _ = reported
    ranked = ranked_run(run, data)
    failures = worst_failures(ranked, per_domain=4)
    # One of each label: of the cats A[1], of the dogs A[2]. Another domain comes before another label.
    assert [(failure.query.id, failure.right) for failure in failures["a"]] == [
        (A[2], (False, True)),
        (A[1], (False, False, False)),
    ]
    assert [failure.missed and failure.missed.id for failure in failures["a"]] == [None, A[0]]
    (failure,) = failures["b"]
    assert (failure.query.id, failure.missed and failure.missed.id) == (Q, B[0])
    assert [failure.query.id for failure in worst_failures(ranked, per_domain=1)["a"]] == [A[2]]


def test_a_hit_that_is_not_in_the_gallery_is_a_wrong_one(reported: Reported) -> None:
    run, data, _ = reported
    rankings: Rankings = {A[0]: ["z/test/9"]}
    ranked = replace(ranked_run(run, data), by_scope={"merged": rankings})
    (failure,) = worst_failures(ranked, per_domain=1)["a"]
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


def test_the_timeline_skips_the_pause_of_a_resumed_run() -> None:
    before = [seen(A[0], [], 0.1 * n, 0.1) for n in range(40)]  # until 4.0 s
    after = [seen(A[1], [], 0.1 * n, 0.1, segment=3) for n in range(39)]  # for 3.9 s
    failed = seen(A[2], [], 3.9, 0.1, segment=3, status=500)
    time = timeline([*before, *after, failed])
    assert time is not None
    assert time.resumed == [50.0]
    assert time.failures == [100.0]
    assert time.slice_s == pytest.approx(8 / 3)  # 79 answers: three slices of at least 20
    assert time.rate.x_ticks[-1] == Tick(100.0, "8")


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


def test_no_thumbnail_of_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    assert thumbnail(tmp_path / "text.png") is None
    assert thumbnail(tmp_path / "nothing.png") is None


def test_markdown_has_the_results_and_no_foreign_markup(reported: Reported) -> None:
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
    thirds = {
        "a": replace(summary.domains["a"], r_at_1=1 / 3, mmp_at_5=0.5),
        "b": replace(summary.domains["b"], r_at_1=1 / 4, mmp_at_5=0.0),
    }
    mean = replace(summary.mean, r_at_1=7 / 24, r_at_1_interval=(0.0, 1.0), mmp_at_5=0.25)
    separate = ScopeSummary(domains=dict(thirds), mean=mean)
    result = rounded(replace(summary, domains=thirds, mean=mean, separate=separate))
    assert (result.domains["a"].r_at_1, result.domains["a"].mmp_at_5) == (0.333, 0.5)
    assert result.mean.r_at_1 == pytest.approx(0.2915)
    assert result.mean.mmp_at_5 == 0.25
    assert result.mean.r_at_1_interval == (0.0, 1.0)
    assert result.separate
    assert result.separate.mean == result.mean
    done = CliRunner().invoke(app, ["report", str(run.folder), "--reference-rounding", "--json"])
    assert done.exit_code == 0, done.output
    assert "each domain was rounded to 3 decimals before averaging" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == to_json(rounded(summary))
    assert read_record(run.folder / "summary.json", RunSummary) == summary
