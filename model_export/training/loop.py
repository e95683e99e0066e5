"""The one training loop: every strategy is a `Strategy` and goes through here.

stages -> plan of domains -> batch of one domain -> (backbone) -> embedding -> losses -> step
                                    ... and at every evaluation: val R@1, log, checkpoint
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from model_export.descriptors.evaluation import Scores, evaluate, with_queries
from model_export.errors import ConfigError, SourceError, TrainingError
from model_export.networks.backbones import backbone_named
from model_export.networks.graph import descriptor_graph
from model_export.networks.head import fit_pca
from model_export.training.cache import DescriptorCache, describe_split
from model_export.training.config import Stage, Strategy
from model_export.training.data import CachedDescriptors, Inputs, Pictures, training_set
from model_export.training.objective import Objective
from model_export.training.run_folder import RunFolder, Summary, head_of
from model_export.training.sampling import Batch, Planner
from model_export.training.trainee import Means, Memory, Trainee, make_optimizer, rate_factor
from model_export.training.validation import trusted


def train(strategy: Strategy, data: Dataset, out: Path, cache: Path, workers: int = 0) -> Summary:
    """Train, or go on where `out` stopped; a finished run is returned as it is.

    `workers` processes read pictures. Raises ConfigError, SourceError, or TrainingError (NaN, a full
    disk, another run's folder); the last good checkpoint stays.
    """
    folder = RunFolder(out)
    folder.check(strategy, data.fingerprint)
    finished = folder.summary()
    if finished is not None:
        return finished
    run = _Run(strategy, data, folder, cache, workers)
    if run.accelerator.is_main_process:  # not before all of it has proved to make sense
        folder.claim(strategy, data.fingerprint)
    for number in range(run.memory.stage, len(strategy.stages)):
        run.stage(number)
    return run.finish()


@dataclass
class _Stage:
    """What one stage works with."""

    number: int
    said: Stage
    steps: int
    planner: Planner
    inputs: Inputs
    model: nn.Module  # the trainee as accelerate wrapped it
    optimizer: torch.optim.Optimizer


class _Run:
    def __init__(
        self, strategy: Strategy, data: Dataset, folder: RunFolder, cache: Path, workers: int
    ) -> None:
        self.strategy, self.data, self.folder, self.workers = strategy, data, folder, workers
        self.images = training_set(data, strategy.domains)
        self.validated = with_queries(data, list(self.images.sizes), "val")
        self.memory, self.optimizer_state = Memory(), None
        for number in range(len(strategy.stages)):
            self._planner(number)  # raises ConfigError where it does not fit the data
        # A batch touches the classifier of one domain only: the others have no gradient in that step.
        spread = DistributedDataParallelKwargs(find_unused_parameters=True)
        AcceleratorState._reset_state()  # else the process' first training would decide the precision of all
        try:
            self.accelerator = Accelerator(mixed_precision=strategy.mixed_precision, kwargs_handlers=[spread])
        except ValueError as error:  # fp16 where there is no GPU, for one
            raise ConfigError(f"mixed_precision {strategy.mixed_precision!r}: {error}") from error
        self.row = backbone_named(strategy.backbone)
        if not self.validated:
            raise SourceError(f"{data.root}: no validation queries, so no checkpoint could be chosen")
        self.cache = DescriptorCache(cache, self.row, strategy.weights, data)
        self.frozen: dict[str, NDArray[np.float32]] = {}
        if strategy.anchor is not None:
            self.frozen = {domain: self.cache.read(domain, "train") for domain in self.images.sizes}
        trust = trusted(self.images, self.frozen)
        torch.manual_seed(strategy.seed)
        descriptor = descriptor_graph(self.row, strategy.weights).to(memory_format=torch.channels_last)
        objective = Objective(strategy, self.images.classes, self.row.descriptor_dim, trust)
        self.trainee = Trainee(descriptor, objective).to(self.accelerator.device)
        state = folder.load("latest")
        if state is None:
            self._initialise()
        else:
            objective.load_state_dict(state["objective"])
            if state["descriptor"] is not None:
                descriptor.load_state_dict(state["descriptor"])
            self.memory, self.optimizer_state = Memory(**state["memory"]), state["optimizer"]

    def _initialise(self) -> None:
        init, embed = self.strategy.head.init, self.trainee.objective.embed
        if init == "random":
            return
        descriptors = {domain: self.cache.read(domain, "train") for domain in self.images.sizes}
        head = fit_pca(descriptors, embed.out_features, whiten=True)
        with torch.no_grad():
            embed.weight.copy_(torch.from_numpy(head.weight))
            embed.bias.copy_(torch.from_numpy(head.bias))

    def _steps(self, said: Stage) -> int:
        return max(1, round(said.epochs * sum(self.images.sizes.values()) / said.batch))

    def _planner(self, number: int) -> Planner:
        said, sizes = self.strategy.stages[number], self.images.sizes
        steps, seed = self._steps(said), self._seed(number)
        return Planner(self.strategy.sampling, sizes, said.batch, steps, seed, self.memory.visits)

    def stage(self, number: int) -> None:
        """From where the memory stands to the stage's end."""
        said, memory = self.strategy.stages[number], self.memory
        steps, planner = self._steps(said), self._planner(number)
        planner.teacher_loss |= memory.teacher_loss
        with self.accelerator.main_process_first():  # descriptors are computed once
            inputs = self._inputs(said)
        optimizer = make_optimizer(self.trainee, said)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        model, prepared = self.accelerator.prepare(self.trainee, optimizer)
        stage = _Stage(number, said, steps, planner, inputs, model, prepared)
        stops = np.unique(np.linspace(0, steps, said.evaluations + 1).round().astype(int))[1:]
        with progress_bar(get_console()) as progress:
            progress.disable = not self.accelerator.is_main_process
            task = progress.add_task(
                f"{self.strategy.title}: {said.train}", total=steps, completed=memory.step
            )
            for stop in [int(one) for one in stops if one > memory.step]:
                self._segment(stage, stop, lambda: progress.advance(task))
        self.trainee = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        memory.stage, memory.step, memory.visits = number + 1, 0, {}
        self.optimizer_state = None

    def _segment(self, stage: _Stage, stop: int, advance: Callable[[], None]) -> None:
        """Train up to step `stop`; then evaluate, log and save."""
        memory, planner, start = self.memory, stage.planner, self.memory.step
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        seed = self._seed(stage.number, start)
        torch.manual_seed(seed + self.accelerator.process_index)  # for dropout
        plan, means = planner.segment(start, stop), Means()
        factor = rate_factor(stage.said, stage.steps)
        rates = [stage.said.lr, stage.said.backbone_lr]
        shares = [self._share(batch) for batch in plan]
        for step, (batch, inputs) in enumerate(
            zip(shares, stage.inputs.of(shares, seed), strict=True), start
        ):
            for group, rate in zip(stage.optimizer.param_groups, rates, strict=False):
                group["lr"] = rate * factor(step)
            losses = self._step(stage, batch, inputs)
            means.add({**losses, f"class {batch.domain}": losses["class"]})
            if "teacher" in losses:
                planner.learned(batch.domain, losses["teacher"])
            memory.steps[batch.domain] = memory.steps.get(batch.domain, 0) + 1
            advance()
        memory.total_steps += stop - start
        memory.step, memory.visits, memory.teacher_loss = stop, planner.visits, planner.teacher_loss
        memory.wall_s += time.perf_counter() - wall_s
        memory.cpu_s += time.process_time() - cpu_s
        self._evaluate(stage, means.read())

    def _step(self, stage: _Stage, batch: Batch, inputs: Tensor) -> dict[str, float]:
        stage.model.train()
        labels = torch.from_numpy(self.images.labels[batch.domain][batch.rows])
        device = self.accelerator.device
        frozen = self.frozen.get(batch.domain)
        held = None if frozen is None else torch.from_numpy(frozen[batch.rows]).to(device)
        losses = stage.model(inputs.to(device), labels.to(device), batch.domain, held)
        total = sum(losses.values())
        # The mean over processes: what is learned of a teacher, and NaN, must be the same for all of them.
        means = self.accelerator.reduce(torch.stack([loss.detach() for loss in losses.values()]), "mean")
        said = dict(zip(losses, means.tolist(), strict=True))
        if not math.isfinite(sum(said.values())):
            raise self._gone_wrong(f"the loss is {said}")
        stage.optimizer.zero_grad()
        self.accelerator.backward(total)
        stage.optimizer.step()
        return said

    def _gone_wrong(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what} after step {self.memory.total_steps}: stopped; the last good checkpoint is in "
            f"{self.folder.path}"
        )

    def _evaluate(self, stage: _Stage, losses: dict[str, float]) -> None:
        memory = self.memory
        scores = self._validate(stage.said)
        memory.log.append(
            {
                "stage": stage.number,
                "step": memory.step,
                "total_steps": memory.total_steps,
                "val R@1": scores.mean["R@1"],
                "val mMP@5": scores.mean["mMP@5"],
                **{f"loss {name}": value for name, value in losses.items()},
                **{f"R@1 {domain}": score.r_at_1 for domain, score in scores.domains.items()},
                "wall_s": round(memory.wall_s, 1),
                "cpu_s": round(memory.cpu_s, 1),
            }
        )
        better = scores.mean["R@1"] > memory.best_val
        if better:
            memory.best_val, memory.best_steps = scores.mean["R@1"], dict(memory.steps)
            memory.best_stage, memory.best_step = stage.number, memory.step
        if not self.accelerator.is_main_process:
            return
        if not all(bool(torch.isfinite(one).all()) for one in self.trainee.parameters()):
            raise self._gone_wrong("a parameter is not a number")
        trained = any(one.train == "all" for one in self.strategy.stages[: stage.number + 1])
        state = memory.checkpoint(self.trainee, stage.optimizer, trained)
        if better:
            embed = self.trainee.objective.embed.state_dict()
            when = {"stage": stage.number, "epoch": memory.step / stage.steps * stage.said.epochs}
            self.folder.save("best", {"embed": embed, "descriptor": state["descriptor"], **when})
        self.folder.write_log(memory.log)
        self.folder.save("latest", state)

    def _validate(self, said: Stage) -> Scores:
        head = head_of(self.trainee.objective.embed.state_dict())

        def embed(domain: str, split: str) -> NDArray[np.float32]:
            if said.train == "head":
                rows = self.cache.read(domain, split)
            else:
                rows = describe_split(self.trainee.descriptor, self.row, self.data, domain, split)
            return head(rows)

        self.trainee.eval()
        return evaluate(self.data, self.validated, "val", embed)

    def _inputs(self, said: Stage) -> Inputs:
        if said.train == "all":
            return Pictures(self.images, self.row.preprocessing, said.augment, self.workers)
        views = range(said.views)
        return CachedDescriptors(
            [
                {domain: self.cache.read(domain, "train", view) for domain in self.images.sizes}
                for view in views
            ]
        )

    def _share(self, batch: Batch) -> Batch:
        """The part of a batch that this process trains on; never none of it."""
        here, of = self.accelerator.process_index, self.accelerator.num_processes
        return Batch(batch.domain, batch.rows[here::of] if len(batch.rows) >= of else batch.rows)

    def _seed(self, *words: int) -> int:
        return int(np.random.SeedSequence([self.strategy.seed, *words]).generate_state(1)[0])

    def finish(self) -> Summary:
        """Write the plot and the summary."""
        summary = self.memory.summary(self.strategy.title)
        if self.accelerator.is_main_process:
            self.folder.finish(summary, self.memory.log)
        self.accelerator.wait_for_everyone()
        return summary
