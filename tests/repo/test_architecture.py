"""The folders are the architecture: the imports each one may have."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("service", "model_export", "benchmarks")
# The files of the harness that compare the service with its own parts, also within other servers.
EFFICIENCY = {"benchmarks/baselines/efficiency.py", "benchmarks/baselines/apps/model.py"}

ALLOWED = {
    "service": {"service"},
    "model_export": {
        "model_export",
        "benchmarks.datasets.dataset",
        "benchmarks.errors",
        "benchmarks.files",
        "benchmarks.scoring.measures",
        "benchmarks.scoring.evaluation",
        "benchmarks.progress",
        "service.inference.encoder",
        "service.manifest",
        "service.inference.images",
        "service.process",
        "service.errors",
    },
    "benchmarks": {"benchmarks", "service.client"},
}

# Inside a package, by folder or top-level file: each line may import from the lines below it, and no line
# from itself. `__init__` holds the version.
LAYERS = {
    "service": """
        bento __main__
        http
        core tune
        inference index fetch logs
        settings manifest client
        metrics errors hosts process __init__
    """,
    "model_export": """
        __main__
        baseline inspection
        export paper_table
        training
        checkpoints descriptors
        networks folders
        errors __init__
    """,
    "benchmarks": """
        __main__
        cli
        demo operating_points
        comparison reports
        replay
        load soak baselines
        scoring targets runs
        datasets
        files
        stats progress tables errors __init__
    """,
}
MAX_ENTRIES = {"service": 18, "model_export": 14, "benchmarks": 20}
TEST_AREAS = {"support", "service", "live", "benchmarks", "model_export", "repo", "fuzz"}


def imports_of(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            # `from service import errors` imports a module of the package.
            modules |= {f"{module}.{alias.name}" for alias in node.names} if module in PACKAGES else {module}
    return modules


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_point_one_way(package: str) -> None:
    assert files_of(package)
    for file in files_of(package):
        if str(file.relative_to(ROOT)) in EFFICIENCY:
            continue
        internal = {name for name in imports_of(file) if name.split(".")[0] in PACKAGES}
        wrong = {
            name
            for name in internal
            if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[package])
        }
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def upward_imports(package: Path) -> list[str]:
    """Imports inside `package` that do not point to a lower layer, as `file imports module`."""
    rank = {
        name: level for level, line in enumerate(LAYERS[package.name].split("\n")) for name in line.split()
    }
    upward = []
    for file in sorted(package.rglob("*.py")):
        own = file.relative_to(package).parts[0].removesuffix(".py")
        for module in sorted(imports_of(file)):
            root, _, rest = module.partition(".")
            other = rest.split(".")[0] if rest and not rest.startswith("__") else "__init__"  # __version__
            if root == package.name and other != own and rank[other] <= rank[own]:
                upward.append(f"{file.relative_to(package.parent)} imports {module}")
    return upward


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_to_lower_layers(package: str) -> None:
    assert upward_imports(ROOT / package) == []


def test_a_planted_upward_import_is_found(tmp_path: Path) -> None:
    package = tmp_path / "service"
    (package / "inference").mkdir(parents=True)
    (package / "inference" / "cache.py").write_text("from service.http.app import create_app\n")
    (package / "core.py").write_text("from service import settings\nfrom service.tune import tune\n")
    assert upward_imports(package) == [
        "service/core.py imports service.tune",
        "service/inference/cache.py imports service.http.app",
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_top_level_stays_small(package: str) -> None:
    entries = {file.relative_to(ROOT / package).parts[0] for file in files_of(package)}
    assert len(entries) <= MAX_ENTRIES[package], sorted(entries)


@pytest.mark.parametrize("package", ["service", "benchmarks"])
def test_only_model_export_imports_torch(package: str) -> None:
    for file in files_of(package):
        roots = {name.split(".")[0] for name in imports_of(file)}
        assert not roots & {"torch", "open_clip", "torchvision", "timm"}, file


def imports_of_tests(tests: Path) -> list[str]:
    """Imports of a test module or a conftest, which belong into `support`, as `file imports module`."""
    return [
        f"{file.relative_to(tests.parent)} imports {module}"
        for file in sorted(tests.rglob("*.py"))
        for module in sorted(imports_of(file))
        if module.startswith("tests.") and re.search(r"\.(test_\w+|conftest)$", module)
    ]


def test_no_test_imports_another_test_or_a_conftest() -> None:
    assert imports_of_tests(ROOT / "tests") == []


def test_a_planted_import_of_a_test_is_found(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_a.py").write_text("from tests.live.test_b import x\nfrom tests.support.live import PNG\n")
    (tests / "test_b.py").write_text("import tests.conftest\nfrom tests import conftest\n")
    assert imports_of_tests(tests) == [
        "tests/test_a.py imports tests.live.test_b",
        "tests/test_b.py imports tests.conftest",
    ]


def test_the_top_level_of_tests_holds_areas_only() -> None:
    entries = {file.relative_to(ROOT / "tests").parts[0] for file in files_of("tests")}
    assert entries == TEST_AREAS | {"__init__.py", "conftest.py"}


def test_files_stay_small() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for package in (*PACKAGES, "tests")
        for file in files_of(package)
        if (lines := len(file.read_text().splitlines())) > 280
    }
    assert not long


def test_no_tracked_file_names_a_registry_or_a_machine() -> None:
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
