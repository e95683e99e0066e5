"""The HTTP reference lists the routes and errors that the service has."""

import re
from pathlib import Path

from service import errors
from service.core import Core
from service.errors import ServiceError
from service.http.app import create_app
from service.http.envelope import _OPEN_PATHS
from service.settings import Settings
from tests.support.paths import ROOT

PAGE = (ROOT / "docs/api.md").read_text()


def without_names(path: str) -> str:
    """The path with `{}` for each parameter, whatever its name."""
    return re.sub(r"{\w+}", "{}", path)


def routes_in(page: str) -> set[tuple[str, str]]:
    """(method, path) of each `METHOD /v1/...` in backticks, without the query string."""
    return {
        (method, without_names(path)) for method, path in re.findall(r"`([A-Z]+) (/v[12]/[^`?\s]*)", page)
    }


def errors_in(page: str) -> set[tuple[int, str]]:
    """(status, slug) of each table row that starts with a status."""
    rows = re.findall(r"^\| *`?([45]\d\d)`? *\|([^|]*)", page, re.MULTILINE)
    return {(int(status), slug) for status, cell in rows for slug in re.findall(r"`([a-z-]+)`", cell)}


def test_the_page_lists_every_route(tmp_path: Path) -> None:
    app = create_app(Core(Settings(data_dir=tmp_path)))
    paths = app.openapi()["paths"]
    assert len(paths) > 5
    assert routes_in(PAGE) == {
        (method.upper(), without_names(path)) for path, methods in paths.items() for method in methods
    }


def test_the_page_lists_the_paths_that_need_no_key() -> None:
    (row,) = re.findall(r"^\| `Authorization: Bearer KEY` \|.*", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(/\w+)`", row)) == _OPEN_PATHS
    routes = re.findall(r"^\| `GET (.*?) \|", PAGE, re.MULTILINE)
    assert set(re.findall(r"/\w+", " ".join(routes))) >= _OPEN_PATHS


def test_the_page_lists_every_error() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert errors_in(PAGE) == {
        (error.status, error.slug) for error in classes if issubclass(error, ServiceError)
    }


def test_routes_and_errors_of_a_planted_page_are_read() -> None:
    page = (
        "`GET /v1/a/{id}?k=&x=` and `/v1/b`\n\n| 404 | `not-found`, `lost` | `why` |\n| `500` | `oops` | |\n"
    )
    assert routes_in(page) == {("GET", "/v1/a/{}")}
    assert errors_in(page) == {(404, "not-found"), (404, "lost"), (500, "oops")}


def test_openapi_describes_the_deadline_and_the_key(tmp_path: Path) -> None:
    openapi = create_app(Core(Settings(data_dir=tmp_path))).openapi()
    for methods in openapi["paths"].values():
        for operation in methods.values():
            assert "X-Deadline-Ms" in [parameter["name"] for parameter in operation["parameters"]]
    assert openapi["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    body = openapi["paths"]["/v1/items"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "embedding" in body["properties"]["items"]["items"]["required"]
