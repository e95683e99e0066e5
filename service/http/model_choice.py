"""Which of the served models a request is for."""

from typing import Annotated, Any

from fastapi import Depends, Query, Request

from service.core import Core
from service.errors import FingerprintMismatch
from service.inference.model import Model
from service.manifest import Manifest

_WHICH = "One of the served models; the first if not given."
_Name = Annotated[str | None, Query(alias="model", description=_WHICH)]


async def _asked(request: Request, name: _Name = None) -> Model:
    core: Core = request.app.state.core
    model = core.model(name)
    request.state.fingerprint = model.manifest.fingerprint
    return model


AskedModel = Annotated[Model, Depends(_asked)]


async def _indexed(request: Request, model: AskedModel) -> Model:
    core: Core = request.app.state.core
    if model.manifest.name != core.manifest.name:
        raise FingerprintMismatch(f"the index holds embeddings of the model {core.manifest.name}")
    return model


# Where embeddings meet the index's: naming any model but the one whose they are is a 409.
IndexedModel = Annotated[Model, Depends(_indexed)]


def model_card(manifest: Manifest) -> dict[str, Any]:
    """What makes an embedding comparable to another."""
    return {"dim": manifest.dim, "model": manifest.name, "fingerprint": manifest.fingerprint}
