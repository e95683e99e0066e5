"""What the threads of a service were at, by part, out of py-spy's samples. `python profile_parts.py FILE`

UIE_THREADS=2 python -m service serve &          # and load on it
py-spy record --nonblocking --threads --format raw --rate 500 --duration 9 --output FILE --pid WORKER
"""

import sys
from collections import Counter
from pathlib import Path

# A sample is of the part of its innermost frame that is named here.
PARTS = {
    "_encode_batch (service/batching": "collate",
    "encode (service/encoder": "infer",
    "_decode (service/batching": "decode",
    "service/inference/images.py": "decode",
    "_serve (service/batching": "queue",
    "service/inference/batching.py": "queue",
    "service/inference/pipeline.py": "queue",
    "service/metrics.py": "metrics",
    "service/http/body.py": "parsing",
    "service/http/intake.py": "parsing",
    "service/http/heads.py": "HTTP: uvicorn, uvloop",
    "uvicorn/protocols": "HTTP: uvicorn, uvloop",
    "asyncio/runners.py": "HTTP: uvicorn, uvloop",
    "json/": "serialise",
    "service/http/": "our routes and envelope",
    "fastapi/": "FastAPI, Starlette",
    "starlette/": "FastAPI, Starlette",
    "bentoml": "BentoML",
    "opentelemetry": "tracing",
    "asgi/__init__": "tracing",
    "trace/__init__": "tracing",
}


def part_of(frames: list[str]) -> str:
    """Of a stack, outermost frame first."""
    named = (part for frame in reversed(frames) for key, part in PARTS.items() if key in frame)
    return next(named, "other")


counts: Counter[str] = Counter()
for line in Path(sys.argv[1]).read_text().splitlines():
    stack, _, samples = line.rpartition(" ")
    counts[part_of(stack.split(";"))] += int(samples)
for part, samples in counts.most_common():
    print(f"{part:28}{samples / counts.total():7.2%}")  # noqa: T201
