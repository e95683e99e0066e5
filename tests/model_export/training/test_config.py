"""An invalid strategy is refused with the name of the fault."""

from pathlib import Path

import pytest

from model_export.errors import ConfigError
from model_export.training.config import load_strategy

STRATEGIES = Path(__file__).parents[3] / "model_export" / "strategies"


@pytest.mark.parametrize("file", sorted(STRATEGIES.rglob("*.toml")), ids=lambda file: file.stem)
def test_every_shipped_strategy_is_valid(file: Path) -> None:
    assert load_strategy(file).title


def test_strategies_of_the_paper_differ_in_classifier_and_sampling_only() -> None:
    """UnED, section 4: joint or separate, round robin or by size."""
    four = {
        name: load_strategy(STRATEGIES / "octet" / f"{name}.toml")
        for name in ("ujcrr", "ujcds", "uscrr", "uscds")
    }
    for name, strategy in four.items():
        assert strategy.classifier.kind == ("joint" if name[1] == "j" else "separate")
        assert strategy.sampling.kind == ("round-robin" if name.endswith("rr") else "dataset-size")
        assert (strategy.classifier.loss, strategy.classifier.scale, strategy.head.dim) == (
            "normface",
            16,
            64,
        )
    shared = [strategy.model_dump(exclude={"title", "classifier", "sampling"}) for strategy in four.values()]
    assert all(fields == shared[0] for fields in shared)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


BASE = 'title = "a"\nbackbone = "b"\n[head]\ndim = 8\ndropout = 0.5\n[[stages]]\ntrain = "head"\nepochs = 1\n'


ALL_FIRST = BASE.replace('"head"', '"all"') + '[[stages]]\ntrain = "head"\nepochs = 1\n'


def test_extends_merges_tables(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", BASE)
    strategy = load_strategy(write(tmp_path, "more.toml", 'extends = "base.toml"\n[head]\ndim = 4\n'), seed=7)
    assert (strategy.head.dim, strategy.head.dropout, strategy.seed, strategy.title) == (4, 0.5, 7, "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "Invalid value"),
        (BASE + "[classifier]\nlost = 1\n", "classifier.lost"),
        (BASE + '[classifier]\nloss = "arcface"\n', "arcface with margin 0"),
        (BASE + "[classifier]\nmargin = 0.3\n", "normface takes no margin"),
        (BASE + '[sampling]\nkind = "teacher-loss"\n', "needs teachers"),
        (BASE + '[sampling]\nkind = "steps"\n', "used together"),
        (BASE + "[udon]\nteacher_dim = 8\n", "separate classifiers"),
        (
            BASE + '[sampling]\nkind = "steps"\n[sampling.steps]\na = 0\n',
            "sampling.steps.a: .* greater than 0",
        ),
        (ALL_FIRST, "`head` cannot follow a stage `all`"),
        ("extends = 3\n", "extends = 3 is not a file name"),
        ('title = "a"\nbackbone = "b"\nstages = []\n', "stages"),
        ('extends = "self.toml"\n', "extends itself"),
        ('extends = "nowhere.toml"\n', "nowhere.toml"),
    ],
)
def test_fault_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_strategy(write(tmp_path, "self.toml", text))
