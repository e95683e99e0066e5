"""The service's model in a plain FastAPI app: a thread pool, one image per inference, no limits, no checks.

`python -m benchmarks.baselines.apps.plain_fastapi --port 8000`
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import orjson
import typer
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.baselines.apps.model import PATH, load_model, stop_with_parent, threads


def create_app() -> FastAPI:
    """Return the app. Raises StartupError."""
    app, model = FastAPI(), load_model()
    pool = ThreadPoolExecutor(threads())

    def embed_image(data: bytes) -> bytes:
        embedding = model.infer(model.decode(data)[None])[0]
        return orjson.dumps({"embedding": embedding.tolist()})

    @app.post(PATH)
    async def embed(request: Request) -> Response:
        data = await request.body()
        content = await asyncio.get_running_loop().run_in_executor(pool, embed_image, data)
        return Response(content, media_type="application/json")

    @app.get("/readyz")
    async def ready() -> None:
        pass

    return app


def main(port: Annotated[int, typer.Option()]) -> None:
    """Serve until SIGTERM, or until the parent process ends."""
    stop_with_parent()
    uvicorn.run(create_app(), port=port, loop="uvloop", http="httptools", access_log=False)


if __name__ == "__main__":
    typer.run(main)
