"""A load from several processes at once, so that the client is not the limit; each writes its own lines."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

from rich.console import Console

from benchmarks.errors import BenchmarkError, Interrupted, RunError
from benchmarks.files import open_to_append
from benchmarks.load.requests import Ask
from benchmarks.load.scenarios import Scenario
from benchmarks.load.worker import Clock, Share, run_share
from benchmarks.progress import progress_bar
from benchmarks.runs.run import ClientUsage, Run
from benchmarks.runs.validity import Limits
from benchmarks.targets.target import Target

_LEAD_S = 0.2  # from the last warm-up to the start
_LOOK_S = 0.1
_NICE = -10  # a client that waits for a core measures itself; it needs little, and root to say so
_STOP_S = 30  # what is in flight has that long, once the run was stopped


@dataclass(frozen=True, slots=True)
class Client:
    """How the load is generated."""

    processes: int = 1
    warm_up: int = 32  # requests before the clock starts, which are not observed
    key: str | None = None  # the service's bearer key
    limits: Limits = field(default_factory=Limits.from_environment)  # of a valid run


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent, and when."""

    target: Target
    scenario: Scenario
    asks: Sequence[Ask]
    seconds: float | None = None  # a closed loop stops after these; None: once all were asked


def drive(
    load: Load, client: Client, folder: Path, segment: int, what: str, console: Console
) -> list[ClientUsage]:
    """Send it all; observations are in `folder` as `observations-<segment>-<process>.jsonl`.

    Returns the usage of each client process, and writes it to `folder`.

    Raises TargetError where the service is gone, DataError, RunError where lines cannot be written, and
    Interrupted; what was observed is there all the same.
    """
    crew = _Crew(load, client, folder, segment)
    first: BenchmarkError | None = None
    try:
        crew.start()
        with progress_bar(console) as progress:
            bar, start = progress.add_task(what, total=None), time.monotonic()
            while crew.working:
                total = _total(load, crew.done, time.monotonic() - start)
                progress.update(bar, completed=crew.done, total=total)
                time.sleep(_LOOK_S)
            progress.update(bar, completed=crew.done, total=crew.done)
    except KeyboardInterrupt:
        first = Interrupted("stopped; what was observed is kept, and the same command goes on")
    finally:
        crew.end()
    first = first or crew.error
    try:
        Run(folder).write_client_usage(segment, crew.usage)
    except RunError as error:
        first = first or error  # on a full disk both are: the first one says what became of the run
    if first:
        raise first
    return crew.usage


def _total(load: Load, done: int, elapsed_s: float) -> float:
    """Pictures in all; where time ends the load, by the rate so far."""
    if load.seconds is not None:
        return done * max(1.0, load.seconds / elapsed_s)
    return sum(len(ask.pictures) for ask in load.asks)


class _Crew:
    def __init__(self, load: Load, client: Client, folder: Path, segment: int) -> None:
        most = load.scenario.streams or len(load.asks)  # a process without a stream would send nothing
        processes = max(1, min(client.processes, most, len(load.asks)))
        warm_up = -(-client.warm_up // (processes * load.scenario.bulk))
        # Not forked: threads and event loops of this process are none of theirs.
        context = multiprocessing.get_context("spawn")
        self._stopped = context.Event()
        self._errors = context.SimpleQueue()
        self._counts = context.Array("q", processes, lock=False)
        self._barrier = context.Barrier(processes)
        self._cpu_s = context.Array("d", processes, lock=False)
        self._wall_s = context.Array("d", processes, lock=False)
        began = context.Value("d", 0.0, lock=False)
        usage = (self._cpu_s, self._wall_s)
        shared = (self._barrier, began, self._stopped, self._counts, usage, self._errors)
        self._processes: list[BaseProcess] = [
            context.Process(
                target=_work,
                args=(
                    _share(load, client, number, processes, segment),
                    warm_up,
                    folder / f"observations-{segment:03d}-{number:02d}.jsonl",
                    number,
                    shared,
                ),
                daemon=True,
            )
            for number in range(processes)
        ]

    def start(self) -> None:
        for process in self._processes:
            process.start()

    @property
    def working(self) -> bool:
        if any(process.exitcode for process in self._processes) or not self._errors.empty():
            self._stopped.set()  # one has failed, so all stop
            self._barrier.abort()
        return any(process.is_alive() for process in self._processes)

    @property
    def usage(self) -> list[ClientUsage]:
        return list(map(ClientUsage, self._cpu_s, self._wall_s))

    @property
    def done(self) -> int:
        return sum(self._counts)

    def end(self) -> None:
        self._stopped.set()
        until = time.monotonic() + _STOP_S
        for process in self._processes:
            if process.pid is not None:
                process.join(max(0.0, until - time.monotonic()))
                process.kill()
                process.join()

    @property
    def error(self) -> BenchmarkError | None:
        if not self._errors.empty():
            first: BenchmarkError = self._errors.get()
            return first
        died = [process.exitcode for process in self._processes if process.exitcode]
        if died:
            return RunError(f"a client process died with exit status {died[0]}; what it observed is kept")
        return None


def _share(load: Load, client: Client, number: int, processes: int, segment: int) -> Share:
    times_s = load.scenario.times_s(len(load.asks))
    streams = load.scenario.streams
    return Share(
        target=load.target,
        scenario=load.scenario,
        asks=load.asks[number::processes],
        times_s=None if times_s is None else times_s[number::processes].tolist(),
        streams=streams // processes + (number < streams % processes),
        segment=segment,
        key=client.key,
        seconds=load.seconds,
    )


def _work(share: Share, warm_up: int, file: Path, number: int, shared: tuple[Any, ...]) -> None:
    barrier, began, stopped, counts, (used_cpu_s, used_wall_s), errors = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's; one decides
    with contextlib.suppress(PermissionError):
        os.nice(_NICE)

    cpu_s, wall_s, parent = 0.0, 0.0, os.getppid()

    def begin() -> float:
        nonlocal cpu_s, wall_s
        if barrier.wait() == 0:
            began.value = time.monotonic() + _LEAD_S
        barrier.wait()
        time.sleep(max(0.0, began.value - time.monotonic()))
        # Both clocks start here: a share of CPU time over another interval is not a share.
        cpu_s, wall_s = time.process_time(), time.monotonic()
        return float(began.value)

    def is_over() -> bool:
        return bool(stopped.is_set()) or os.getppid() != parent  # it was killed: nobody waits for us

    def count(pictures: int) -> None:
        counts[number] += pictures

    try:
        # A line at a time: what was observed is there, whatever happens next.
        with open_to_append(file) as stream:
            run_share(share, warm_up, stream, Clock(begin, is_over, count))
        used_cpu_s[number] = time.process_time() - cpu_s
        used_wall_s[number] = time.monotonic() - wall_s
    except BrokenBarrierError:
        pass  # another one has failed before the start, and says why
    except BenchmarkError as error:
        errors.put(error)
    except OSError as error:
        errors.put(RunError(f"{file} cannot be written: {os.strerror(error.errno or 0)}; the run is kept"))
