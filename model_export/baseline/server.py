"""A naive server of a torch model: what anybody writes first, for a faster one to be measured against.

A baseline, not a product: eager fp32, one picture at a time in the one thread that also answers HTTP; no
queue, no batch, no limit on what is sent, no answer to a probe while a picture is being embedded. Inside the
network torch has threads of its own, one a core and spinning: on a busy machine it is many times as fast
with `OMP_NUM_THREADS=1`.
"""

from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from torch import nn

from benchmarks.datasets.dataset import Dataset
from model_export.baseline.from_onnx import graph_from_onnx
from model_export.descriptors.images import MAX_PIXELS, describe
from model_export.export.sources import trained_from
from model_export.networks.graph import EmbeddingGraph
from service.errors import UndecodableImage
from service.inference.images import decode
from service.manifest import Preprocessing, load_manifest


def torch_graph(source: str, data: Path) -> tuple[nn.Module, Preprocessing]:
    """A run of `train`, a backbone with a PCA on `data`, or an fp32 model folder, in torch.

    Raises SourceError, TrainingError, ManifestError or ParityError.
    """
    folder = Path(source)
    if (folder / "manifest.json").exists():
        return graph_from_onnx(folder), load_manifest(folder).preprocessing
    trained = trained_from(source, Dataset(data), "pca")
    return EmbeddingGraph(trained.descriptor, trained.head), trained.preprocessing


def naive_app(graph: nn.Module, preprocessing: Preprocessing) -> FastAPI:
    """`POST /embed`, the picture as the body, to `{"embedding": [...]}`; `GET /readyz`."""
    app = FastAPI()

    @app.post("/embed")
    async def embed(request: Request) -> dict[str, list[float]]:
        try:
            pixels = decode(await request.body(), preprocessing, MAX_PIXELS)
        except UndecodableImage as error:
            raise HTTPException(400, error.detail) from error
        return {"embedding": describe(graph, pixels[None])[0].tolist()}

    @app.get("/readyz")
    async def ready() -> dict[str, bool]:
        return {"ready": True}  # it listens once the model is loaded

    return app
