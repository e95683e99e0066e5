"""The training loop of all strategies.

stages -> plan of domains -> batch of one domain -> (backbone) -> embedding -> losses -> step
                                    ... and at every evaluation: val R@1, log, checkpoint
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from numpy.typing import NDArray
from rich import get_console
from torch import Tensor, nn

from benchmarks.datasets.dataset import Dataset
from benchmarks.progress import progress_bar
from benchmarks.scoring.measures import DomainScore
from model_export.descriptors.evaluation import domains_with_queries, evaluate
from model_export.errors import ConfigError, SourceError, TrainingError
from model_export.networks.backbones import backbone_named
from model_export.networks.graph import descriptor_graph
from model_export.networks.head import fit_pca
from model_export.training.cache import DescriptorCache, describe_split
from model_export.training.config import Stage, Strategy
from model_export.training.data import CachedDescriptors, ImageInputs, Inputs, training_set
from model_export.training.objective import Objective
from model_export.training.run_folder import RunFolder, Summary, head_of
from model_export.training.sampling import Batch, Planner
from model_export.training.trainee import Memory, Trainee, make_optimizer, rate_factor


def train(strategy: Strategy, data: Dataset, out: Path, cache: Path, workers: int = 0) -> Summary:
    """Train, or resume a run in `out`. The summary of a finished run is returned at once.

    `workers` processes read images. Raises ConfigError, SourceError, or TrainingError (NaN, a full disk,
    another run's folder); the last good checkpoint is kept.
    """
    folder = RunFolder(out)
    folder.check(strategy, data.fingerprint)
    if (finished := folder.summary()) is not None:
        return finished
    run = _Run(strategy, data, folder, cache, workers)
    if run.accelerator.is_main_process:  # only after the strategy is known to fit the data
        folder.claim(strategy, data.fingerprint)
    for number in range(run.memory.stage, len(strategy.stages)):
        run.stage(number)
    return run.finish()


@dataclass
class _ActiveStage:
    number: int
    config: Stage
    steps: int
    planner: Planner
    inputs: Inputs
    model: nn.Module  # the trainee, wrapped by accelerate
    optimizer: torch.optim.Optimizer


class _Run:
    def __init__(
        self, strategy: Strategy, data: Dataset, folder: RunFolder, cache: Path, workers: int
    ) -> None:
        self.strategy, self.data, self.folder, self.workers = strategy, data, folder, workers
        self.images = training_set(data, strategy.domains)
        self.val_domains = domains_with_queries(data, list(self.images.sizes), "val")
        self.memory, self.optimizer_state = Memory(), None
        for number in range(len(strategy.stages)):
            self._planner(number)  # raises ConfigError if a stage does not fit the data
        # A batch uses the classifier of a single domain; the others have no gradient in that step.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        AcceleratorState._reset_state()  # else the first training of a process sets the precision of all
        try:
            self.accelerator = Accelerator(mixed_precision=strategy.mixed_precision, kwargs_handlers=[unused])
        except ValueError as error:  # such as fp16 without a GPU
            raise ConfigError(f"mixed_precision {strategy.mixed_precision!r}: {error}") from error
        self.row = backbone_named(strategy.backbone)
        if not self.val_domains:
            raise SourceError(f"{data.root}: no validation queries, so no checkpoint can be chosen")
        self.cache = DescriptorCache(cache, self.row, strategy.weights, data)
        self.frozen = self._cached_views() if strategy.anchor is not None else {}
        trust = self.images.r_at_1(self.frozen)
        torch.manual_seed(strategy.seed)
        descriptor = descriptor_graph(self.row, strategy.weights).to(memory_format=torch.channels_last)
        objective = Objective(strategy, self.images.classes, self.row.descriptor_dim, trust)
        self.trainee = Trainee(descriptor, objective).to(self.accelerator.device)
        state = folder.load("latest")
        if state is not None:
            objective.load_state_dict(state["objective"])
            if state["descriptor"] is not None:
                descriptor.load_state_dict(state["descriptor"])
            self.memory, self.optimizer_state = Memory(**state["memory"]), state["optimizer"]
        elif strategy.head.init == "whitened":
            head = fit_pca(self._cached_views(), strategy.head.dim, whiten=True)
            with torch.no_grad():
                objective.embed.weight.copy_(torch.from_numpy(head.weight))
                objective.embed.bias.copy_(torch.from_numpy(head.bias))

    def _cached_views(self, view: int = 0) -> dict[str, NDArray[np.float32]]:
        return {domain: self.cache.read(domain, "train", view) for domain in self.images.sizes}

    def _steps(self, config: Stage) -> int:
        return max(1, round(config.epochs * sum(self.images.sizes.values()) / config.batch))

    def _planner(self, number: int) -> Planner:
        config, sizes = self.strategy.stages[number], self.images.sizes
        steps, seed = self._steps(config), self._seed(number)
        return Planner(self.strategy.sampling, sizes, config.batch, steps, seed, self.memory.visits)

    def stage(self, number: int) -> None:
        """Train from the current step to the end of the stage."""
        config, memory = self.strategy.stages[number], self.memory
        steps, planner = self._steps(config), self._planner(number)
        planner.teacher_loss |= memory.teacher_loss
        with self.accelerator.main_process_first():  # the other processes read its cached descriptors
            inputs = self._inputs(config)
        optimizer = make_optimizer(self.trainee, config)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        model, prepared = self.accelerator.prepare(self.trainee, optimizer)
        stage = _ActiveStage(number, config, steps, planner, inputs, model, prepared)
        stops = np.unique(np.linspace(0, steps, config.evaluations + 1).round().astype(int))[1:]
        with progress_bar(get_console()) as progress:
            progress.disable = not self.accelerator.is_main_process
            title = f"{self.strategy.title}: {config.train}"
            task = progress.add_task(title, total=steps, completed=memory.step)
            for stop in [int(stop) for stop in stops if stop > memory.step]:
                self._segment(stage, stop, lambda: progress.advance(task))
        self.trainee = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        memory.stage, memory.step, memory.visits = number + 1, 0, {}
        self.optimizer_state = None

    def _segment(self, stage: _ActiveStage, stop: int, advance: Callable[[], None]) -> None:
        """Train up to step `stop`, then evaluate, log and save."""
        memory, planner, start = self.memory, stage.planner, self.memory.step
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        seed = self._seed(stage.number, start)
        torch.manual_seed(seed + self.accelerator.process_index)  # for dropout
        values: defaultdict[str, list[float]] = defaultdict(list)
        rates = [stage.config.lr, stage.config.backbone_lr]
        batches = [self._share(batch) for batch in planner.segment(start, stop)]
        inputs = stage.inputs.read(batches, seed)
        for step, (batch, rows) in enumerate(zip(batches, inputs, strict=True), start):
            for group, rate in zip(stage.optimizer.param_groups, rates, strict=False):
                group["lr"] = rate * rate_factor(stage.config, step, stage.steps)
            losses = self._step(stage, batch, rows)
            for name, value in {**losses, f"class {batch.domain}": losses["class"]}.items():
                values[name].append(value)
            if "teacher" in losses:
                planner.learned(batch.domain, losses["teacher"])
            memory.steps[batch.domain] = memory.steps.get(batch.domain, 0) + 1
            advance()
        memory.total_steps += stop - start
        memory.step, memory.visits, memory.teacher_loss = stop, planner.visits, planner.teacher_loss
        memory.wall_s += time.perf_counter() - start_s
        memory.cpu_s += time.process_time() - start_cpu_s
        self._evaluate(stage, {name: sum(column) / len(column) for name, column in values.items()})

    def _step(self, stage: _ActiveStage, batch: Batch, inputs: Tensor) -> dict[str, float]:
        stage.model.train()
        labels = torch.from_numpy(self.images.labels[batch.domain][batch.rows])
        device = self.accelerator.device
        rows = self.frozen.get(batch.domain)
        frozen = None if rows is None else torch.from_numpy(rows[batch.rows]).to(device)
        losses = stage.model(inputs.to(device), labels.to(device), batch.domain, frozen)
        # All processes need the same values to plan by teacher loss and to stop at NaN.
        means = self.accelerator.reduce(torch.stack([loss.detach() for loss in losses.values()]), "mean")
        values = dict(zip(losses, means.tolist(), strict=True))
        if not math.isfinite(sum(values.values())):
            raise self._diverged(f"the loss is {values}")
        stage.optimizer.zero_grad()
        self.accelerator.backward(sum(losses.values()))
        stage.optimizer.step()
        return values

    def _diverged(self, reason: str) -> TrainingError:
        return TrainingError(
            f"training stopped after step {self.memory.total_steps}: {reason}; "
            f"the last good checkpoint is in {self.folder.path}"
        )

    def _evaluate(self, stage: _ActiveStage, losses: dict[str, float]) -> None:
        memory = self.memory
        better = memory.record(stage.number, self._validate(stage.config), losses)
        if not self.accelerator.is_main_process:
            return
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.trainee.parameters()):
            raise self._diverged("a parameter is not finite")
        tuned = any(config.train == "all" for config in self.strategy.stages[: stage.number + 1])
        state = {
            "objective": self.trainee.objective.state_dict(),
            "descriptor": self.trainee.descriptor.state_dict() if tuned else None,
            "optimizer": stage.optimizer.state_dict(),
            "memory": asdict(memory),
        }
        if better:
            embed = self.trainee.objective.embed.state_dict()
            epoch = memory.step / stage.steps * stage.config.epochs
            best = {"embed": embed, "descriptor": state["descriptor"], "stage": stage.number, "epoch": epoch}
            self.folder.save("best", best)
        self.folder.write_log(memory.log)
        self.folder.save("latest", state)

    def _validate(self, config: Stage) -> dict[str, DomainScore]:
        head = head_of(self.trainee.objective.embed.state_dict())

        def embed(domain: str, split: str) -> NDArray[np.float32]:
            if config.train == "head":
                return head(self.cache.read(domain, split))
            return head(describe_split(self.trainee.descriptor, self.row, self.data, domain, split))

        self.trainee.eval()
        return evaluate(self.data, self.val_domains, "val", embed)

    def _inputs(self, config: Stage) -> Inputs:
        if config.train == "all":
            return ImageInputs(self.images, self.row.preprocessing, config.augment, self.workers)
        return CachedDescriptors([self._cached_views(view) for view in range(config.views)])

    def _share(self, batch: Batch) -> Batch:
        """Return the part of a batch that this process trains on, at least one row."""
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        rows = batch.rows[index::processes] if len(batch.rows) >= processes else batch.rows
        return Batch(batch.domain, rows)

    def _seed(self, *words: int) -> int:
        return int(np.random.SeedSequence([self.strategy.seed, *words]).generate_state(1)[0])

    def finish(self) -> Summary:
        """Write the plot and the summary."""
        summary = self.memory.summary(self.strategy.title)
        if self.accelerator.is_main_process:
            self.folder.finish(summary, self.memory.log)
        self.accelerator.wait_for_everyone()
        return summary
