"""`python -m service optimise`: build the HNSW graph of the embedded index while no service has it open."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from service.errors import SettingsError, StartupError
from service.index.edge import build_graph
from service.manifest import load_manifest
from service.process import end_with_parent
from service.settings import Quantization, Settings


@dataclass(frozen=True)
class Optimised:
    """The state of the index after building its graph."""

    items: int
    indexed_vectors: int  # in a graph; the others are searched exactly
    quantization: Quantization
    took_s: float


def optimise(settings: Settings, from_items: int, console: Console) -> Optimised:
    """Build the graph of segments with at least `from_items`, and quantize the vectors as set.

    Ctrl-C ends it immediately and leaves a valid index. Raises StartupError.
    """
    if settings.qdrant_url is not None:
        raise SettingsError("UIE_QDRANT_URL is set: a Qdrant server builds its graphs itself")
    folder = settings.index_folder
    if not (folder / "shard").exists():
        raise SettingsError(f"there is no index in {folder}")
    dim = load_manifest(settings.model_folders[0]).dim
    start = time.perf_counter()
    columns = (SpinnerColumn(), TextColumn("building the graph"), TimeElapsedColumn())
    # The engine holds the GIL and reports no progress, so it runs in another process.
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _prepare_process, (os.getpid(),)
        ) as executor,
    ):
        progress.add_task("", total=None)
        future = executor.submit(build_graph, folder, dim, settings.index_quantization, from_items)
        try:
            items, indexed_vectors = future.result()
        except BrokenProcessPool as error:
            raise StartupError("no graph was built: its process was killed (out of memory?)") from error
    return Optimised(items, indexed_vectors, settings.index_quantization, time.perf_counter() - start)


def _prepare_process(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would handle it only after the engine returns
    end_with_parent(parent)
