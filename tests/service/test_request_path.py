"""The files that a query image crosses, from the ASGI request to the response. A reader has to open these.

Below ASGI uvicorn calls `http/heads.py`, for every request alike. A cache, which is off here, adds one file.
"""

import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType

import httpx
import pytest

import service
from service.core import Core
from service.http.app import create_app
from service.http.envelope import Envelope
from service.settings import Settings
from tests.support.images import encode, noise

MAX_FILES = 14
ROOT = Path(service.__file__).parent
# Plain data and counters, which a reader need not open to follow the path.
LEAVES = {
    "settings.py",
    "manifest.py",
    "metrics.py",
    "errors.py",
    "logs.py",
    "inference/work.py",
    "index/base.py",
}


class Recorder:
    """Records the files of `service/` whose functions run while `on`, in all threads started after it."""

    def __init__(self) -> None:
        self.on = False
        self.files: list[str] = []  # in the order of their first call

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if self.on and event == "call" and ROOT in path.parents:
            file = str(path.relative_to(ROOT))
            if file not in self.files and file not in LEAVES:
                self.files.append(file)


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    recorder = Recorder()
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    yield recorder
    sys.setprofile(None)
    threading.setprofile(None)


async def test_a_query_image_crosses_few_files(recorder: Recorder, tmp_path: Path) -> None:
    core = Core(Settings(data_dir=tmp_path, lanes=1))
    await core.start()  # its threads start here, and inherit the profiler
    image = encode(noise(1))
    transport = httpx.ASGITransport(Envelope(create_app(core), core))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        put = await client.put("/v1/items/a", params={"domain": "d", "label": "l"}, content=image)
        assert put.status_code == 200, put.text
        recorder.on = True
        response = await client.post("/v1/search", params={"k": 1}, content=image)
        recorder.on = False
    await core.close()
    assert [hit["id"] for hit in response.json()["hits"]] == ["a"]
    assert {"http/search.py", "inference/images.py", "index/wire.py"} <= set(recorder.files)
    assert len(recorder.files) <= MAX_FILES, "\n".join(recorder.files)
