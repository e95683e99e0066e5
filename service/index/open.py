"""Opening the index that the settings select."""

from pathlib import Path

from service.index.base import VectorIndex
from service.index.edge import EdgeIndex
from service.settings import Settings


def open_index(settings: Settings, dim: int, fingerprint: str) -> VectorIndex:
    """Open the embedded index, or the one on a Qdrant server. Raises StartupError."""
    if settings.qdrant_url is None:
        return EdgeIndex(edge_folder(settings), dim, fingerprint, settings.index_quantization)
    # Imported here because loading the client takes a second.
    from qdrant_client import QdrantClient

    from service.index.server import ServerIndex

    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    client = QdrantClient(url=settings.qdrant_url, api_key=key, timeout=10)
    return ServerIndex(client, settings.collection, dim, fingerprint, settings.index_quantization)


def edge_folder(settings: Settings) -> Path:
    """Return the folder of the embedded index."""
    return settings.data_dir / settings.collection
