"""The layers that a request to embed an image skips, and those that it must not skip."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.dependencies.utils import solve_dependencies
from starlette.types import Receive, Scope, Send

from service.core import Core
from service.http.app import create_app
from service.http.envelope import Envelope
from service.settings import Settings
from tests.support.images import encode, noise


async def bentoml(scope: Scope, _: Receive, __: Send) -> None:
    """Stands for BentoML's middleware and router."""
    raise AssertionError(f"{scope['path']} reached BentoML")


async def test_embedding_skips_bentomls_router_and_fastapis_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[str] = []

    async def counted(*, request: Any, **arguments: Any) -> Any:
        solved.append(request.url.query)
        return await solve_dependencies(request=request, **arguments)

    monkeypatch.setattr("fastapi.routing.solve_dependencies", counted)
    core = Core(Settings(data_dir=tmp_path, lanes=1))
    await core.start()
    transport = httpx.ASGITransport(Envelope(bentoml, core, create_app(core)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        image = encode(noise(1))
        plain = await client.post("/v1/embed", content=image)
        batch = await client.post("/v1/embed/batch", files=[("images", image)])
        assert solved == []
        model = {"model": core.manifest.name}
        named = await client.post("/v1/embed", params=model, content=image)
        misspelt = await client.post("/v1/embed", params={"modle": "x"}, content=image)
        wrong_method = await client.get("/v1/embed")
    await core.close()
    assert plain.json() == named.json()
    assert batch.json()["results"] == [{"embedding": plain.json()["embedding"]}]
    assert [misspelt.status_code, misspelt.json()["type"]] == [400, "invalid-request"]
    assert [wrong_method.status_code, wrong_method.headers["allow"]] == [405, "POST"]
