"""Measured services as rows: this service, or any other that embeds an image over HTTP.

This service searches its own index. For other targets the harness collects the embeddings and searches them
exactly.
"""

import base64
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import TargetError

TargetKind = Literal["uie", "openai", "post"]

_OPENAI = '{"model": "{model}", "input": ["{data_uri}"], "encoding_format": "float", "modality": "image"}'


@dataclass(frozen=True, slots=True)
class Target:
    """A service, and the form of its embedding request."""

    kind: TargetKind
    url: str  # base URL of this service; for other kinds, the URL of the embedding call
    model: str = ""  # empty: the service's default
    body: str = "raw"  # raw; form:FIELD; or JSON that contains {base64} or {data_uri}, optionally {model}
    vector: str = "embedding"  # path of the embedding in the response: data.0.embedding

    @property
    def searches(self) -> bool:
        """True if the target has an index that the harness may fill and search."""
        return self.kind == "uie"


def target_row(kind: TargetKind, url: str, model: str, body: str, vector: str) -> Target:
    """Return the target that the command-line options describe. Raises TargetError."""
    if kind == "openai":
        return Target(kind, url, model, _OPENAI, "data.0.embedding")
    target = Target(kind, url.rstrip("/") if kind == "uie" else url, model, body, vector)
    if kind == "post" and body.lstrip().startswith("{"):
        if json_body(target, b"x") == json_body(target, b"y"):
            raise TargetError(
                f"body {body!r} has neither {{base64}} nor {{data_uri}}: no image would be sent"
            )
    elif kind == "post" and body != "raw" and not body.startswith("form:"):
        raise TargetError(f"body {body!r} is neither raw, form:FIELD nor JSON")
    return target


def json_body(target: Target, image: bytes) -> Any:
    """Fill an image into the JSON template. Raises TargetError if the template is not valid JSON."""
    values = {
        "{base64}": base64.b64encode(image).decode(),
        "{data_uri}": data_uri(image),
        "{model}": target.model,
    }
    try:
        return _filled(json.loads(target.body), values)
    except ValueError as error:
        raise TargetError(f"the body template is not valid JSON: {error}") from error


def data_uri(image: bytes) -> str:
    """Return a data URI whose media type follows from the first bytes."""
    kind = "png" if image.startswith(b"\x89PNG") else "webp" if image[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def vector_of(target: Target, body: Any) -> NDArray[np.float32]:
    """Extract the embedding from a response: float32 (D,). Raises TargetError if there is none."""
    try:
        for step in target.vector.split("."):
            body = body[int(step)] if isinstance(body, list) else body[step]
        vector = np.asarray(body, dtype=np.float32)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise TargetError(f"the response has no vector at {target.vector}: {error!r}") from error
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise TargetError(f"the value at {target.vector} is not a vector of finite numbers")
    return vector


def _filled(template: Any, values: dict[str, str]) -> Any:
    if isinstance(template, dict):
        return {key: _filled(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, values) for value in template]
    if isinstance(template, str):
        for name, value in values.items():
            template = template.replace(name, value)
    return template
