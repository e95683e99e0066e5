"""A naive torch server, used as a baseline in benchmarks.

It runs eager fp32 on single images in the thread that also serves HTTP, without a queue, batching, limits, or
responses to probes during inference. torch uses one spinning thread per core; on a busy machine the server is
many times faster with `OMP_NUM_THREADS=1`.
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
    """Load a run of `train`, a backbone with a PCA of `data`, or an fp32 model folder as a torch graph.

    Raises SourceError, TrainingError, ManifestError or ParityError.
    """
    folder = Path(source)
    if (folder / "manifest.json").exists():
        return graph_from_onnx(folder), load_manifest(folder).preprocessing
    trained = trained_from(source, Dataset(data), "pca")
    return EmbeddingGraph(trained.descriptor, trained.head), trained.preprocessing


def naive_app(graph: nn.Module, preprocessing: Preprocessing) -> FastAPI:
    """Create the app: `POST /embed`, an image as the body, returns `{"embedding": [...]}`; `GET /readyz`."""
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
        return {"ready": True}  # the server listens only after the model is loaded

    return app
