"""Traces in the form a collector receives."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from benchmarks.targets.process import running_service
from tests.support.live import PNG, embedding_of
from tests.support.pictures import encode, noise
from tests.support.waiting import LIMIT_S

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a collector, and the bodies it received."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        server.shutdown()


def test_a_request_is_a_span_of_its_callers_trace(collector: tuple[str, list[bytes]], tmp_path: Path) -> None:
    url, received = collector
    with running_service(tmp_path / "log", data_dir=str(tmp_path / "index"), otlp_url=url) as service:
        headers = {**PNG, "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        embedding_of(
            httpx.post(f"{service.url}/v1/embed", content=encode(noise(1)), headers=headers, timeout=LIMIT_S)
        )
    spans = b"".join(received)  # the service sends the rest when it stops
    assert bytes.fromhex(TRACE) in spans
    assert b"/v1/embed" in spans
