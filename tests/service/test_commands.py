"""Refusals on the command line: a sentence that says how to go on."""

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.__main__ import app as benchmarks_app
from service.__main__ import app as service_app
from service.core import Core
from service.errors import SettingsError
from service.settings import load_settings


def test_a_default_that_depends_on_an_invalid_setting_is_no_second_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UIE_THREADS", "many")  # UIE_LANES follows it
    with pytest.raises(SettingsError) as refusal:
        load_settings()
    assert "UIE_THREADS" in str(refusal.value)
    assert ";" not in str(refusal.value)


def test_an_unknown_model_is_refused_with_those_of_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UIE_MODEL", "resnet")
    with pytest.raises(SettingsError, match=r"'resnet'.* efficientnet-lite0-octet.* \./resnet"):
        Core(load_settings())


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
@pytest.mark.parametrize(("app", "verb"), [(service_app, "serve"), (benchmarks_app, "demo")])
def test_a_port_that_does_not_exist_is_refused(app: typer.Typer, verb: str, port: str) -> None:
    done = CliRunner().invoke(app, [verb, "--port", port])
    assert done.exit_code == 2
    assert "--port" in done.output
