"""`python -m service optimise`: the embedded index gets its HNSW graph while no service has it open."""

import multiprocessing
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from service.errors import SettingsError, StartupError
from service.index.edge import build_graph
from service.index.open import edge_folder
from service.manifest import load_manifest
from service.settings import Quantization, Settings


@dataclass(frozen=True)
class Optimised:
    """What the index holds now."""

    items: int
    indexed_vectors: int  # in a graph; the others are searched exactly, beside it
    quantization: Quantization
    took_s: float


def optimise(settings: Settings, from_items: int, console: Console) -> Optimised:
    """Build the graph over parts of at least `from_items`, with the quantization of the settings.

    Ctrl-C ends it at once, and the index is as good as before. Raises StartupError.
    """
    if settings.qdrant_url is not None:
        raise SettingsError("UIE_QDRANT_URL is set: a Qdrant server builds its graphs by itself")
    folder = edge_folder(settings)
    if not (folder / "shard").exists():
        raise SettingsError(f"there is no index in {folder}")
    dim = load_manifest(settings.model_folders[0]).dim
    start = time.perf_counter()
    look = (SpinnerColumn(), TextColumn("building the graph"), TimeElapsedColumn())
    # The engine holds the GIL until it is done and says nothing before: the clock ticks in this process,
    # the work is done in another, and a signal that Python would see too late ends that one by itself.
    with (
        Progress(*look, console=console) as progress,
        ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_DFL)
        ) as other,
    ):
        progress.add_task("", total=None)
        building = other.submit(build_graph, folder, dim, settings.index_quantization, from_items)
        try:
            items, indexed_vectors = building.result()
        except BrokenProcessPool as error:
            raise StartupError("no graph was built: its process was killed, perhaps for memory") from error
    return Optimised(items, indexed_vectors, settings.index_quantization, time.perf_counter() - start)
