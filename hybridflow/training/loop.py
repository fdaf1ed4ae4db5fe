"""The loop that every stage runs in: clock, schedule, averaged weights, saves, resume, one process or many."""

import json
import math
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import held_parts, load_parts, refuse_other_sizes, save_parts
from hybridflow.distributed import agreed, mean_over_processes, processes
from hybridflow.draws import Draws
from hybridflow.errors import TrainingError
from hybridflow.model import HybridFlow, Preset
from hybridflow.precision import autocast, require_device
from hybridflow.saving import replace_atomically, require_writable
from hybridflow.training.config import TrainConfig
from hybridflow.training.data import PhotoSet
from hybridflow.training.extra import needed
from hybridflow.training.journal import Journal
from hybridflow.training.optimiser import hidden_weights, optimisers
from hybridflow.training.stages import STAGES
from hybridflow.training.validation import validate

_STATE_FORMAT = 4
"""Rises whenever an older `state.pt` cannot be gone on from."""

_ANOTHER_FOLDER = "go on from its weights.safetensors by --init, in another folder by --out"

WARMED_BY = 0.1
"""Share of a stage after which its learning rate is warm, however many steps that takes."""

ONE_ASKING = 1.0
"""Seconds in which signals are one wish to end: GNU's `timeout` sends two at once."""

SKIPPED_MOST = 100
"""Steps one after the other without a finite gradient, at which a run gives up."""


def start_processes(device: str) -> Any:
    """Accelerate's `Accelerator` of this process, on "cpu" or "cuda".

    Raises:
        TrainingError: Accelerate is not installed.
        HybridFlowError: there is no such device.
    """
    accelerate = needed("accelerate")
    require_device(device)
    return accelerate.Accelerator(cpu=device == "cpu", mixed_precision="no")


class Run:
    """One stage's training run in a folder of its own.

    Leaves `config.yaml`, `log.jsonl` and TensorBoard's files, `state.pt` (all that `resume` needs),
    `weights.safetensors` (averaged weights of every part, model and ablations, that was loaded or trained) and
    `best.safetensors` (the same, of the best validation).

    Every random number comes of the step and the sample's number (see `Draws`), so the state holds no generator, a
    resumed run does what an unbroken one would, and so does one that is split over processes.

    Args:
        stage: a name of `STAGES`.
        preset: a name of `PRESETS`, or sizes of your own.
        photos: what `crops` are taken of.
        init: safetensors, or a folder of them, whose parts to start from.
        resume: go on from the folder's `state.pt`, whatever `init` is.
        accelerator: from `start_processes`.
        validation: crops (N,3,H,W) in [0,1] to validate on; none if there is nothing to validate on.
        minutes: how long the stage was trained before, if `init` holds what it left but its full state is lost.

    Attributes:
        began: progress at which the optimisers started.
        measured: figures of the last validation.
        ended: a signal asked the last call of `train` to end.

    Raises:
        TrainingError, CheckpointError, HybridFlowError: as `check_start`; or the folder's state is damaged, or of
            another version or preset; or `init` does not fit, or is not frozen where the stage trains around frozen
            bits.
    """

    def __init__(
        self,
        stage: str,
        preset: str | Preset,
        config: TrainConfig,
        photos: PhotoSet,
        out: Path,
        init: Path | None,
        resume: bool,
        accelerator: Any,
        validation: Tensor | None = None,
        minutes: float = 0.0,
    ) -> None:
        self.config, self.photos, self.out, self.accelerator = config, photos, out, accelerator
        self.device = accelerator.device
        self.validation = None if validation is None else validation.to(self.device)
        check_start(stage, preset, config, out, init, resume, accelerator)
        self.share = config.batch // (config.accumulate * accelerator.num_processes)
        torch.manual_seed(config.seed)
        model = HybridFlow(preset)
        if STAGES[stage].decoder == "perceptual":
            model.add_perceptual()
        ablations = Ablations(model.preset)
        loaded = load_parts(init, model, ablations) if init is not None and not resume else set()
        self.stage = STAGES[stage](model, ablations, config, photos)
        self.parts = sorted(loaded | {*self.stage.trained, *self.stage.kept})
        if not resume and minutes == 0:
            self.stage.begin(loaded)
        self.stage.to(self.device, memory_format=torch.channels_last).train()
        self.trained = {turn: self.stage.parameters_of(turn) for turn in self.stage.turns}
        hidden = hidden_weights(self.stage, model.preset.num_codes)
        self.optimisers = {turn: optimisers(found.values(), hidden) for turn, found in self.trained.items()}
        self.average = {name: p.detach().clone() for name, p in self.trained["loss"].items()}
        self.step, self.minutes, self.skipped, self.skipped_since = 0, minutes, 0, 0
        self.began = self.progress
        self.best, self.since_best = math.inf, 0
        self.totals: dict[str, float] = {}
        self.measured: dict[str, float] = {}
        self.ended = False
        if resume:
            self._load()
        if accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            for left in out.glob(".*.partial"):  # of a save that a kill cut short
                left.unlink(missing_ok=True)
            record = {"stage": stage, "preset": _recorded(preset)} | asdict(config)
            text = yaml.safe_dump(record, sort_keys=False)
            replace_atomically(out / "config.yaml", lambda path: path.write_text(text))
        if config.compile:
            second = [] if model.perceptual is None else model.perceptual.children()
            for part in (*model.children(), *ablations.children(), *second):
                if part is not model.codebook:  # its restarts are drawn by the number of the step, a graph for each
                    part.compile()
        accelerator.ddp_handler = needed("accelerate").DistributedDataParallelKwargs(
            broadcast_buffers=False, find_unused_parameters=len(self.stage.turns) > 1
        )
        self.parallel = accelerator.prepare_model(self.stage)

    @property
    def progress(self) -> float:
        """Share of the stage that has passed, by steps if they are given, else by the clock."""
        if self.config.max_steps is not None:
            return self.step / self.config.max_steps
        return self.minutes / self.config.max_minutes

    @property
    def over(self) -> bool:
        c = self.config
        late = c.max_minutes is not None and self.minutes >= c.max_minutes
        return self.progress >= 1 or late or (c.patience is not None and self.since_best >= c.patience)

    def train(self, minutes: float = math.inf) -> None:
        """Train until the clock, the steps or the patience run out, `minutes` of this call have passed or a signal asks
        to end, then save.

        Raises:
            TrainingError: the device's memory does not hold a step, too many have no finite gradient, or the run cannot
                be saved at its end; the last save is left.
        """
        end = self.minutes + minutes
        journal = None
        if self.accelerator.is_main_process:
            journal = Journal(self.out, self.step, self.config.max_steps, self.config.batch)
        last_save = last_validation = self.minutes
        with _ended_by_signals() as ended:
            tick = time.monotonic()
            while not (self.over or self.minutes >= end or self._any_process(bool(ended))):
                try:
                    self._add(self._step())
                except torch.OutOfMemoryError:
                    each = f"{self.share} crops of {self.config.crop} pixels at once"
                    raise TrainingError(f"out of memory at {each}: raise accumulate, or lower batch or crop") from None
                self.step += 1
                now = time.monotonic()
                self.minutes += agreed((now - tick) / 60, self.device)
                tick = now
                if journal:
                    journal.bar.update()
                if self.step % self.config.log_steps == 0:
                    self._log(journal)
                due = self.over or self.minutes >= min(end, last_validation + self.config.validate_minutes)
                if due and self.validation is not None:
                    self._validate(journal)
                    last_validation = self.minutes
                if self.minutes - last_save >= self.config.save_minutes:
                    self._save_or_warn(self.save)
                    last_save = self.minutes
            self.save()
            self.ended = self._any_process(bool(ended))
        if journal:
            journal.close()

    # --- one step ---------------------------------------------------------------------------------------------------

    def _step(self) -> dict[str, float]:
        """Move every optimiser once, but not along a gradient that is not finite; returns what the log averages."""
        started = time.monotonic()
        batches = [self._batch(part) for part in range(self.config.accumulate)]
        data_seconds = time.monotonic() - started
        self.stage.prepare(self.progress)
        rate = self._learning_rate()
        terms = {"learning_rate": rate}
        for turn, optimisers_of_turn in self.optimisers.items():
            for optimiser in optimisers_of_turn:
                for group in optimiser.param_groups:
                    group["lr"] = group["share"] * rate
                optimiser.zero_grad(set_to_none=True)
            terms |= self._backward(turn, batches)
            gradient = nn.utils.clip_grad_norm_(self.trained[turn].values(), self.config.clip)
            if torch.isfinite(gradient):
                for optimiser in optimisers_of_turn:
                    optimiser.step()
            terms["gradient" if turn == "loss" else f"{turn}_gradient"] = gradient
        self._follow_average()
        values = torch.stack([torch.as_tensor(value, device=self.device).float() for value in terms.values()])
        terms = dict(zip(terms, values.tolist()))  # waits for the device
        return terms | {"seconds": time.monotonic() - started, "data_seconds": data_seconds}

    def _batch(self, part: int) -> tuple[Tensor, Draws]:
        """This process's share of a part of the step's batch: crops (share,3,crop,crop), and what else is drawn."""
        first = self.step * self.config.batch
        first += (part * self.accelerator.num_processes + self.accelerator.process_index) * self.share
        samples = torch.arange(first, first + self.share, device=self.photos.device)
        x = self.photos.crops(self.config.crop, Draws(self.config.seed, self.step, samples)).to(self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # so that the share of the time that is data can be told
        return x, Draws(self.config.seed + 1, self.step, samples.to(self.device))

    def _backward(self, turn: str, batches: list[tuple[Tensor, Draws]]) -> dict[str, Tensor]:
        """Gradients of a turn's mean loss over the batches, and the means of its terms."""
        means: dict[str, Tensor] = {}
        for number, (x, draws) in enumerate(batches, 1):
            waiting = self.accelerator.no_sync(self.parallel) if number < len(batches) else nullcontext()
            with waiting:
                with autocast(self.device, self.config.bf16):
                    loss, terms = self.parallel(turn, x, draws, self.progress)
                (loss / len(batches)).backward()
            for name, value in ({turn: loss.detach()} | terms).items():
                means[name] = means.get(name, 0) + value / len(batches)
        return means

    def _learning_rate(self) -> float:
        """Warm-up by steps, for a tenth of the stage at most, then a cosine down to a hundredth."""
        passed = (self.progress - self.began) / WARMED_BY
        warm = min(1.0, max((self.step + 1) / max(1, self.config.warmup_steps), passed))
        return self.config.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * min(1.0, self.progress)))

    @torch.no_grad()
    def _follow_average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self.trained["loss"].values()), 1 - decay)

    # --- what the processes agree on --------------------------------------------------------------------------------

    def _any_process(self, flag: bool) -> bool:
        return agreed(float(flag), self.device) > 0

    # --- seeing it --------------------------------------------------------------------------------------------------

    def _add(self, terms: dict[str, float]) -> None:
        """Count a step in the next line of the log, or as skipped if a gradient, the same in every process, was not
        finite."""
        if not all(math.isfinite(value) for name, value in terms.items() if name.endswith("gradient")):
            self.skipped += 1
            self.skipped_since += 1
            if self.skipped_since == SKIPPED_MOST:
                mend = "lower learning_rate, or go on from best.safetensors by --init, in another folder by --out"
                raise TrainingError(f"no gradient of {SKIPPED_MOST} steps was finite: {mend}")
            return
        self.skipped_since = 0
        for name, value in terms.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
        self.totals["steps"] = self.totals.get("steps", 0) + 1

    def _log(self, journal: Journal | None) -> None:
        """Write the means since the last line, over all processes; how many steps were skipped is told even if all
        were."""
        figures = {"minutes": self.minutes, "skipped": self.skipped}
        if self.totals:
            steps = self.totals.pop("steps")
            sums = torch.tensor(list(self.totals.values()), dtype=torch.float64, device=self.device)
            means = dict(zip(self.totals, (mean_over_processes(sums) / steps).tolist()))
            seconds, data_seconds = means.pop("seconds"), means.pop("data_seconds")
            timing = {"images_per_second": self.config.batch / seconds, "data_share": data_seconds / seconds}
            figures = means | figures | timing
            self.totals = {}
        if journal:
            journal.write(self.step, figures)

    def _validate(self, journal: Journal | None) -> None:
        plainly = nullcontext()
        if self.config.compile:  # for the batches that train
            plainly = torch.compiler.set_stance("force_eager")
        with self._averaged(), autocast(self.device, self.config.bf16), plainly:
            figures, x_hat = validate(self.stage, self.validation)
        self.measured = figures
        if self.stage.comparable:
            self.since_best += 1
            loss = agreed(figures["loss"], self.device)  # else one process might lose its patience before the others
            if loss < self.best:
                self.since_best = 0
                if self._save_or_warn(lambda: self._save_weights("best.safetensors")):
                    self.best = loss
        if journal:
            journal.write(self.step, figures, "validation")
            journal.show(self.step, self.validation, x_hat)

    # --- never losing it --------------------------------------------------------------------------------------------

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights take the place of the trained ones."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.trained["loss"].items():
            parameter.data, self.average[name] = self.average[name], parameter.data

    def averaged_weights(self) -> dict[str, Tensor]:
        """The weights of every part that was loaded or trained, averaged where trained, keyed as checkpoints are: part
        name first."""
        return {
            name.partition(".")[2]: self.average.get(name, value).detach().cpu()
            for name, value in self._state().items()
            if not name.startswith("adversary.")
        }

    def _state(self) -> dict[str, Tensor]:
        """The stage's own, without what nobody reads: the parts that were neither loaded nor trained."""
        parts = tuple(f"{owner}.{part}." for owner in ("model", "ablations") for part in self.parts)
        state = self.stage.state_dict().items()
        return {name: value for name, value in state if name.startswith((*parts, "adversary."))}

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        try:
            write(self.out / name)
        except (OSError, RuntimeError, SafetensorError) as error:  # of which the last two hide a full disk
            mend = "make room on its disk; what was saved before is left"
            raise TrainingError(f"{self.out / name} cannot be written ({error}): {mend}") from None

    def _save_weights(self, name: str) -> None:
        if self.accelerator.is_main_process:
            weights = self.averaged_weights()
            self._write(name, lambda path: save_parts(path, weights))

    def _save_or_warn(self, save: Callable[[], None]) -> bool:
        """Whether it was saved, by all processes alike."""
        failed = False
        try:
            save()
        except TrainingError as error:
            warnings.warn(f"step {self.step}: {error}; training goes on")
            failed = True
        return not self._any_process(failed)

    def save(self) -> None:
        """Write the full state, and the averaged weights. The place in the data is the step.

        Raises:
            TrainingError: they cannot be written; what was saved before is left.
        """
        state = {
            "format": _STATE_FORMAT,
            "parts": self.parts,
            "stage": self._state(),
            "average": self.average,
            "optimisers": {turn: [each.state_dict() for each in found] for turn, found in self.optimisers.items()},
            "step": self.step,
            "minutes": self.minutes,
            "began": self.began,
            "skipped": self.skipped,
            "best": self.best,
            "since_best": self.since_best,
            "totals": self.totals,
        }
        if self.accelerator.is_main_process:
            self._write("state.pt", lambda path: replace_atomically(path, lambda partial: torch.save(state, partial)))
        self._save_weights("weights.safetensors")

    def _load(self) -> None:
        # To the CPU: there the optimisers want their count of steps, and they move the rest to the device themselves.
        try:
            state = torch.load(self.out / "state.pt", map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = shorten(str(error) or "it ends early", 100)
            raise TrainingError(f"{self.out}/state.pt is damaged ({reason}): {_ANOTHER_FOLDER}") from None
        if state.get("format") != _STATE_FORMAT:
            raise TrainingError(f"{self.out}/state.pt is of another version of HybridFlow: {_ANOTHER_FOLDER}")
        for name in ("parts", "step", "minutes", "began", "skipped", "best", "since_best", "totals"):
            setattr(self, name, state[name])
        if state["stage"].keys() != self._state().keys():
            mend = "resume with its own, which stands in its config.yaml, or name another folder by --out"
            raise TrainingError(f"{self.out} holds a run of another adversarial_weight: {mend}")
        self.stage.load_state_dict(state["stage"], strict=False)
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
        for turn, found in self.optimisers.items():
            for optimiser, saved in zip(found, state["optimisers"][turn]):
                optimiser.load_state_dict(saved)


def check_start(
    stage: str,
    preset: str | Preset,
    config: TrainConfig,
    out: Path,
    init: Path | None,
    resume: bool,
    accelerator: Any,
) -> None:
    """Refuse a run of these arguments of `Run` that cannot start; call it before photos are read.

    Raises:
        TrainingError: the folder holds another run, or none to resume; the batch does not split; settings are at odds;
            or `init` lacks parts that the stage reads.
        CheckpointError: `init` is of another preset, or as `held_parts`.
        HybridFlowError: the folder cannot be written.
    """
    parts = config.accumulate * accelerator.num_processes
    if config.batch % parts:
        what = f"{accelerator.num_processes} processes x accumulate={config.accumulate}"
        raise TrainingError(f"batch={config.batch} cannot be split over {what}: choose a multiple")
    if config.compile and config.adversarial_weight:  # whose weight asks twice for gradients that are kept but once
        raise TrainingError("compile does not go with adversarial_weight: leave one of them out")
    STAGES[stage].refuse_settings(config)
    check_folder(out, stage, preset, resume)
    if accelerator.is_main_process:  # which alone writes
        require_writable(out)
    if resume:
        return
    there = held_parts(init) if init is not None else set()
    if missing := [name for name in STAGES[stage].reads if name not in there]:
        raise TrainingError(f"{stage} needs {', '.join(missing)}: name by --init what the stages before it left")
    if init is not None:
        with torch.device("meta"):
            model = HybridFlow(preset)
            refuse_other_sizes(init, model, Ablations(model.preset))


def check_folder(out: Path, stage: str, preset: str | Preset, resume: bool) -> None:
    """Raise TrainingError if a run folder holds another run, or none of this stage and preset to resume."""
    try:
        os.fsencode(out).decode()  # TensorBoard wants it so
    except UnicodeDecodeError:
        raise TrainingError(f"{os.fsencode(out)!r} is no name in UTF-8: name another folder by --out") from None
    there = (out / "state.pt").exists()
    if not resume:
        if there:
            raise TrainingError(f"{out} holds a run: go on with it by --resume, or name another folder by --out")
        if (out / "weights.safetensors").exists():
            mend = "take them elsewhere, or name another folder by --out"
            raise TrainingError(f"{out} holds the weights of a run whose state.pt is gone: {mend}")
        return
    if not there:
        raise TrainingError(f"{out} holds no run to resume: leave --resume out, or name its folder by --out")
    stage_there, preset_there = _run_of(out)
    if stage_there != stage:
        raise TrainingError(f"{out} holds a run of another stage than {stage}: name another folder by --out")
    if preset_there != _recorded(preset):
        raise TrainingError(f"{out} holds a run of preset {preset_there}: choose it, or name another folder by --out")


def _recorded(preset: str | Preset) -> str | dict:
    """A preset as `config.yaml` has it."""
    return preset if isinstance(preset, str) else json.loads(json.dumps(asdict(preset)))


def _run_of(out: Path) -> tuple[str, str | dict]:
    """Stage and preset of a run's folder."""
    try:
        record = yaml.safe_load((out / "config.yaml").read_text())
        return record["stage"], record["preset"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        raise TrainingError(f"{out}/config.yaml is damaged or gone: {_ANOTHER_FOLDER}") from None


@contextmanager
def _ended_by_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT add to, so that a step is never cut. A second signal, after `ONE_ASKING`, works as
    it always does, but under a launcher, which hands on to its processes what a terminal or a batch system has sent to
    all of them."""
    ended: list[int] = []
    first = math.inf
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: Any) -> None:
        nonlocal first
        ended.append(number)
        now = time.monotonic()
        first = min(first, now)
        if processes() == 1 and now - first > ONE_ASKING:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
