#!/usr/bin/env bash
# bentoml 1.4.39: the timeout middleware keeps every answered request in memory until its timeout ends.
#
# BentoML wraps a service in `TimeoutMiddleware` (traffic.timeout, 60 s by default). One might expect the timer
# of a request to be cancelled when the response starts. It is not: `loop.call_later` is never cancelled, and the
# timer holds the request's future, and so its context, until the timeout has passed.
#
# Seen: after 2,000 requests that were answered at once, 2,000 timers are still scheduled, and 2,000 objects
# that lived in the contexts of the requests are still alive. Without the middleware both numbers are 0.
#
# Why it matters here: memory in use is requests/s x timeout x bytes per request. With the service's timeout of
# 600 s and 100 requests/s it was 200 MB (docs/decisions/13), which looks like a leak in a soak test. The service
# leaves the middleware out and enforces its limits in `service/http/limits.py`, which cancels its timers.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet bentoml==1.4.39
export BENTOML_DO_NOT_TRACK=true

cat >"$folder/timers.py" <<'PY'
import asyncio
import gc
import sys
import weakref
from contextvars import ContextVar

from bentoml._internal.server.http.traffic import TimeoutMiddleware

REQUESTS = 2_000


class Resource:
    """Stands for what a request keeps in its context: headers, a span, a body."""


resource: ContextVar[Resource] = ContextVar("resource")


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    pass


async def measure(asgi):
    alive = []

    async def request():
        held = Resource()
        alive.append(weakref.ref(held))
        resource.set(held)
        await asgi({"type": "http"}, receive, send)

    for _ in range(REQUESTS):
        await asyncio.create_task(request())  # a task has a context, as a request of a server has
    await asyncio.sleep(0)  # the last task is released by the next turn of the loop
    gc.collect()
    timers = len(asyncio.get_running_loop()._scheduled)
    return timers, sum(reference() is not None for reference in alive)


with_middleware = asyncio.run(measure(TimeoutMiddleware(app, timeout=60)))
without = asyncio.run(measure(app))
print(f"after {REQUESTS} answered requests, timers scheduled and contexts alive:")
print(f"  with TimeoutMiddleware     {with_middleware[0]:5} {with_middleware[1]:5}")
print(f"  without                    {without[0]:5} {without[1]:5}")
sys.exit(0 if with_middleware == (REQUESTS, REQUESTS) and without == (0, 0) else "the behaviour has changed")
PY
"$folder/venv/bin/python" "$folder/timers.py"
