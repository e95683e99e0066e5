"""Print the share of the service's thread time that each part takes, from py-spy's raw samples.

UIE_THREADS=2 python -m service serve &          # and send load to it
py-spy record --nonblocking --threads --format raw --rate 500 --duration 9 --output FILE --pid WORKER
python tools/profile_parts.py FILE
"""

import sys
from collections import Counter
from pathlib import Path

# A sample counts for the innermost of its frames that is listed here.
PARTS = {
    "_encode_batch (service/inference/batching": "collate",
    "encode (service/inference/encoder": "infer",
    "_decode (service/inference/batching": "decode",
    "service/inference/images.py": "decode",
    "_serve (service/inference/batching": "queue",
    "service/inference/batching.py": "queue",
    "service/inference/work.py": "queue",
    "service/inference/pipeline.py": "queue",
    "service/metrics.py": "metrics",
    "service/http/body.py": "parsing",
    "service/http/limits.py": "parsing",
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
    """The part that a stack belongs to; `frames` start with the outermost one."""
    named = (part for frame in reversed(frames) for key, part in PARTS.items() if key in frame)
    return next(named, "other")


counts: Counter[str] = Counter()
for line in Path(sys.argv[1]).read_text().splitlines():
    stack, _, samples = line.rpartition(" ")
    counts[part_of(stack.split(";"))] += int(samples)
for part, samples in counts.most_common():
    print(f"{part:28}{samples / counts.total():7.2%}")  # noqa: T201
