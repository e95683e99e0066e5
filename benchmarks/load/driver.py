"""Load generation from several processes, so that the client is not the bottleneck."""

import contextlib
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import BrokenBarrierError

from rich.console import Console

from benchmarks.errors import BenchmarkError, Interrupted, RunError
from benchmarks.files import open_to_append
from benchmarks.load.requests import Load
from benchmarks.load.worker import Share, Shared, run_share
from benchmarks.progress import progress_bar
from benchmarks.runs.run import ClientUsage, Run
from benchmarks.runs.validity import Limits

_POLL_S = 0.1
_NICE = -10  # waiting for a core would count as latency; needs root, and costs others little
_STOP_TIMEOUT_S = 30  # for requests in flight when the run is stopped


@dataclass(frozen=True, slots=True)
class Client:
    """The processes that generate the load."""

    processes: int = 1
    warm_up: int = 32  # requests before the start, which are not observed
    key: str | None = None  # the service's bearer key
    limits: Limits = field(default_factory=Limits.from_environment)  # of a valid run


def drive(
    load: Load, client: Client, folder: Path, segment: int, title: str, console: Console
) -> list[ClientUsage]:
    """Send the load; observations are in `folder` as `observations-<segment>-<process>.jsonl`.

    Returns the usage of each client process, and writes it to `folder`.

    Raises TargetError if the service is unreachable, DataError, RunError if lines cannot be written, and
    Interrupted; observations up to then are kept.
    """
    processes = _Processes(load, client, folder, segment)
    stopped = Interrupted("stopped; the observations are kept, and the same command resumes the run")
    first: BenchmarkError | None = None
    try:
        processes.start()
        with progress_bar(console) as progress:
            bar, start = progress.add_task(title, total=None), time.monotonic()
            total: float = sum(len(request.images) for request in load.requests)
            while processes.running:
                if load.seconds is not None:  # estimated from the rate so far
                    total = processes.done * max(1.0, load.seconds / (time.monotonic() - start))
                progress.update(bar, completed=processes.done, total=total)
                time.sleep(_POLL_S)
            progress.update(bar, completed=processes.done, total=processes.done)
    except KeyboardInterrupt:
        first = stopped
    finally:
        try:
            processes.stop()
        except KeyboardInterrupt:  # once more
            first = stopped
    first = first or processes.error
    try:
        Run(folder).write_client_usage(segment, processes.usage)
    except RunError as error:
        first = first or error  # a full disk causes both: the first one names the reason
    if first:
        raise first
    return processes.usage


class _Processes:
    def __init__(self, load: Load, client: Client, folder: Path, segment: int) -> None:
        # A process without a stream would never send its share.
        streams, times_s = load.scenario.streams, load.scenario.times_s(len(load.requests))
        count = max(1, min(client.processes, streams or len(load.requests), len(load.requests)))
        # Not forked: threads and event loops of this process must not be copied.
        context = multiprocessing.get_context("spawn")
        self._shared = Shared(
            barrier=context.Barrier(count),
            started=context.Value("d", 0.0, lock=False),
            stopped=context.Event(),
            done=context.Array("q", count, lock=False),
            cpu_s=context.Array("d", count, lock=False),
            wall_s=context.Array("d", count, lock=False),
            errors=context.SimpleQueue(),
        )
        self._processes: list[BaseProcess] = []
        for number in range(count):
            share = Share(
                number=number,
                load=replace(load, requests=load.requests[number::count]),
                times_s=None if times_s is None else times_s[number::count].tolist(),
                streams=streams // count + (number < streams % count),
                warm_up=-(-client.warm_up // (count * load.scenario.bulk)),
                segment=segment,
                key=client.key,
            )
            file = folder / f"observations-{segment:03d}-{number:02d}.jsonl"
            arguments = (share, file, self._shared)
            self._processes.append(context.Process(target=_work, args=arguments, daemon=True))

    def start(self) -> None:
        for process in self._processes:
            process.start()

    @property
    def running(self) -> bool:
        if any(process.exitcode for process in self._processes) or not self._shared.errors.empty():
            self._shared.stopped.set()  # one process failed: stop the others
            self._shared.barrier.abort()
        return any(process.is_alive() for process in self._processes)

    @property
    def usage(self) -> list[ClientUsage]:
        return list(map(ClientUsage, self._shared.cpu_s, self._shared.wall_s))

    @property
    def done(self) -> int:
        return sum(self._shared.done)

    def stop(self) -> None:
        """Wait for the requests in flight, then end the processes; Ctrl-C ends the wait."""
        self._shared.stopped.set()
        until = time.monotonic() + _STOP_TIMEOUT_S
        processes = [process for process in self._processes if process.pid is not None]
        try:
            for process in processes:
                process.join(max(0.0, until - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
                process.join()

    @property
    def error(self) -> BenchmarkError | None:
        if not self._shared.errors.empty():
            first: BenchmarkError = self._shared.errors.get()
            return first
        for process in self._processes:
            if status := process.exitcode:
                return RunError(f"a client process died with exit status {status}; its observations are kept")
        return None


def _work(share: Share, file: Path, shared: Shared) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent handles it
    with contextlib.suppress(PermissionError):
        os.nice(_NICE)
    try:
        # Line-buffered: observations are kept if the process is killed.
        with open_to_append(file) as stream:
            run_share(share, stream, shared)
    except BrokenBarrierError:
        pass  # another process failed before the start, and reports the reason
    except BenchmarkError as error:
        shared.errors.put(error)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        shared.errors.put(RunError(f"{file} cannot be written: {reason}; the run is kept"))
