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
from typing import Any

from rich.console import Console

from benchmarks.errors import BenchmarkError, Interrupted, RunError
from benchmarks.files import open_to_append
from benchmarks.load.requests import Load
from benchmarks.load.worker import Hooks, Share, run_share
from benchmarks.progress import progress_bar
from benchmarks.runs.run import ClientUsage, Run
from benchmarks.runs.validity import Limits

_LEAD_S = 0.2  # from the end of the last warm-up to the start
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
        first = Interrupted("stopped; the observations are kept, and the same command resumes the run")
    finally:
        processes.stop()
    first = first or processes.error
    try:
        Run(folder).write_client_usage(segment, processes.usage)
    except RunError as error:
        first = first or error  # a full disk causes both: the first one names the reason
    if first:
        raise first
    return processes.usage


@dataclass(frozen=True, slots=True)
class _Shared:
    """Synchronisation objects of `multiprocessing` that all client processes share."""

    barrier: Any
    started: Any  # double: the common start on the monotonic clock
    stopped: Any
    done: Any  # images, by process
    cpu_s: Any  # by process
    wall_s: Any  # by process
    errors: Any


class _Processes:
    def __init__(self, load: Load, client: Client, folder: Path, segment: int) -> None:
        # A process without a stream would never send its share.
        streams, times_s = load.scenario.streams, load.scenario.times_s(len(load.requests))
        count = max(1, min(client.processes, streams or len(load.requests), len(load.requests)))
        # Not forked: threads and event loops of this process must not be copied.
        context = multiprocessing.get_context("spawn")
        self._shared = shared = _Shared(
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
                load=replace(load, requests=load.requests[number::count]),
                times_s=None if times_s is None else times_s[number::count].tolist(),
                streams=streams // count + (number < streams % count),
                warm_up=-(-client.warm_up // (count * load.scenario.bulk)),
                segment=segment,
                key=client.key,
            )
            file = folder / f"observations-{segment:03d}-{number:02d}.jsonl"
            arguments = (share, file, number, shared)
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
        self._shared.stopped.set()
        until = time.monotonic() + _STOP_TIMEOUT_S
        for process in self._processes:
            if process.pid is not None:
                process.join(max(0.0, until - time.monotonic()))
                process.kill()
                process.join()

    @property
    def error(self) -> BenchmarkError | None:
        if not self._shared.errors.empty():
            first: BenchmarkError = self._shared.errors.get()
            return first
        statuses = [process.exitcode for process in self._processes if process.exitcode]
        if statuses:
            return RunError(
                f"a client process died with exit status {statuses[0]}; its observations are kept"
            )
        return None


def _work(share: Share, file: Path, number: int, shared: _Shared) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent handles it
    with contextlib.suppress(PermissionError):
        os.nice(_NICE)

    cpu_s, wall_s, parent = 0.0, 0.0, os.getppid()

    def begin() -> float:
        nonlocal cpu_s, wall_s
        if shared.barrier.wait() == 0:
            shared.started.value = time.monotonic() + _LEAD_S
        shared.barrier.wait()
        time.sleep(max(0.0, shared.started.value - time.monotonic()))
        # Both clocks start here: CPU time divided by another interval is not a share.
        cpu_s, wall_s = time.process_time(), time.monotonic()
        return float(shared.started.value)

    def stopped() -> bool:
        return bool(shared.stopped.is_set()) or os.getppid() != parent  # the parent was killed

    def count(images: int) -> None:
        shared.done[number] += images

    try:
        # Line-buffered: observations are kept if the process is killed.
        with open_to_append(file) as stream:
            run_share(share, stream, Hooks(begin, stopped, count))
        shared.cpu_s[number] = time.process_time() - cpu_s
        shared.wall_s[number] = time.monotonic() - wall_s
    except BrokenBarrierError:
        pass  # another process failed before the start, and reports the reason
    except BenchmarkError as error:
        shared.errors.put(error)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        shared.errors.put(RunError(f"{file} cannot be written: {reason}; the run is kept"))
