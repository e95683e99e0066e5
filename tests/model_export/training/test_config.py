"""A strategy that makes no sense is refused with the name of what is wrong."""

from pathlib import Path

import pytest

from model_export.errors import ConfigError
from model_export.training.config import load_strategy

STRATEGIES = Path(__file__).parents[3] / "model_export" / "strategies"


@pytest.mark.parametrize("file", sorted(STRATEGIES.rglob("*.toml")), ids=lambda file: file.stem)
def test_every_strategy_that_ships_can_be_read(file: Path) -> None:
    assert load_strategy(file).title


def test_the_papers_four_differ_in_classifier_and_sampling_alone() -> None:
    """UnED, section 4: joint or separate, round robin or by size."""
    four = {
        name: load_strategy(STRATEGIES / "octet" / f"{name}.toml")
        for name in ("ujcrr", "ujcds", "uscrr", "uscds")
    }
    for name, said in four.items():
        assert said.classifier.kind == ("joint" if name[1] == "j" else "separate")
        assert said.sampling.kind == ("round-robin" if name.endswith("rr") else "dataset-size")
        assert (said.classifier.loss, said.classifier.scale, said.head.dim) == ("normface", 16, 64)
    same = [said.model_dump(exclude={"title", "classifier", "sampling"}) for said in four.values()]
    assert all(one == same[0] for one in same)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


BASE = 'title = "a"\nbackbone = "b"\n[head]\ndim = 8\ndropout = 0.5\n[[stages]]\ntrain = "head"\nepochs = 1\n'


ALL_FIRST = BASE.replace('"head"', '"all"') + '[[stages]]\ntrain = "head"\nepochs = 1\n'


def test_a_strategy_extends_another_table_by_table(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", BASE)
    said = load_strategy(write(tmp_path, "more.toml", 'extends = "base.toml"\n[head]\ndim = 4\n'), seed=7)
    assert (said.head.dim, said.head.dropout, said.seed, said.title) == (4, 0.5, 7, "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "Invalid value"),
        (BASE + "[classifier]\nlost = 1\n", "classifier.lost"),
        (BASE + '[classifier]\nloss = "arcface"\n', "arcface with margin 0"),
        (BASE + "[classifier]\nmargin = 0.3\n", "normface has none"),
        (BASE + '[sampling]\nkind = "teacher-loss"\n', "needs teachers"),
        (BASE + '[sampling]\nkind = "steps"\n', "go together"),
        (BASE + "[udon]\nteacher_dim = 8\n", "separate classifiers"),
        (
            BASE + '[sampling]\nkind = "steps"\n[sampling.steps]\na = 0\n',
            "sampling.steps.a: .* greater than 0",
        ),
        (ALL_FIRST, "`head` after a stage `all`"),
        ("extends = 3\n", "extends = 3 is not a file's name"),
        ('title = "a"\nbackbone = "b"\nstages = []\n', "stages"),
        ('extends = "self.toml"\n', "extends itself"),
        ('extends = "nowhere.toml"\n', "nowhere.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_strategy(write(tmp_path, "self.toml", text))
