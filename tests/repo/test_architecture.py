"""The folders are the architecture: who may import whom."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("service", "model_export", "benchmarks")
# The one file of the harness that compares the service with its own parts.
EFFICIENCY = "benchmarks/baselines/efficiency.py"

ALLOWED = {
    "service": {"service"},
    "model_export": {
        "model_export",
        "benchmarks.datasets.dataset",
        "benchmarks.errors",
        "benchmarks.scoring.measures",
        "benchmarks.scoring.evaluation",
        "benchmarks.progress",
        "service.inference.encoder",
        "service.manifest",
        "service.inference.images",
        "service.errors",
    },
    "benchmarks": {"benchmarks"},
}


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
    return found


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_point_one_way(package: str) -> None:
    assert files_of(package)
    for file in files_of(package):
        if str(file.relative_to(ROOT)) == EFFICIENCY:
            continue
        ours = {name for name in imports_of(file) if name.split(".")[0] in PACKAGES}
        wrong = {
            name
            for name in ours
            if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[package])
        }
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("package", ["service", "benchmarks"])
def test_torch_lives_in_model_export_alone(package: str) -> None:
    for file in files_of(package):
        roots = {name.split(".")[0] for name in imports_of(file)}
        assert not roots & {"torch", "open_clip", "torchvision", "timm"}, file


def test_files_stay_small() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for package in (*PACKAGES, "tests")
        for file in files_of(package)
        if (lines := len(file.read_text().splitlines())) > 280
    }
    assert not long


def test_nothing_committed_names_a_registry_or_this_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    forbidden = re.compile(r"https?://[\w.-]*(pypi|pythonhosted|npmjs|debian)\b[\w.-]*|/opt/|/work/|/root/")
    for name in listed.stdout.splitlines():
        file = ROOT / name
        if file.suffix in {".onnx", ".png"} or name == "tests/repo/test_architecture.py":
            continue
        assert not forbidden.search(file.read_text()), name


def test_locks_name_no_index_and_exactly_one_runtime() -> None:
    for runtime, wheel in (("cpu", "onnxruntime"), ("gpu", "onnxruntime-gpu")):
        for purpose in ("serve", "bench", "test"):
            lock = (ROOT / "requirements" / f"{purpose}-{runtime}.txt").read_text()
            assert "://" not in lock
            assert re.findall(r"^(onnxruntime[a-z-]*)==", lock, re.MULTILINE) == [wheel]
            assert ("\ntorch==" in lock) == (purpose == "test")
