"""A plan of stages, trained in calls of some minutes, each going on from what the last one left."""

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hybridflow.checkpoint import split_parts
from hybridflow.distributed import agreed
from hybridflow.errors import TrainingError
from hybridflow.saving import replace_atomically
from hybridflow.training.config import load_config, load_plan
from hybridflow.training.data import validation_crops
from hybridflow.training.freeze import freeze_weights, held_out_photos
from hybridflow.training.loop import Run, check_start, start_processes
from hybridflow.training.stages import STAGES
from hybridflow.training.streaming import open_photos


SEEDS_A_STAGE = 10**6
"""How far the seeds of one stage are from those of the next."""


class Campaign:
    """A folder with `parts/`, a half-precision file for every part trained and `campaign.json`, and a run folder for
    every stage that was trained here.

    Attributes:
        ledger: content of `campaign.json`: "total_minutes" and "settings" that stages are trained by, and under
            "stages", in their order, what was run of each and measured.

    Args:
        preset: name of a shipped configuration, whose plan it is.
        out: the folder.
        init: `parts/` of an earlier call whose folder is lost; read, and copied by `train`, only if `out` has none.
        total_minutes: of all stages together, earlier calls counted; by default as the last call had it, the plan's own
            at first.

    Raises:
        TrainingError: the parts are of another preset, `init` holds none, or `campaign.json` is damaged.
    """

    def __init__(self, preset: str, out: Path, init: Path | None, total_minutes: float | None) -> None:
        self.preset, self.out, self.parts = preset, out, out / "parts"
        self.init = None if self.parts.exists() else init
        known = (self.init or self.parts) / "campaign.json"
        if self.init is not None and not known.exists():
            raise TrainingError(f"{init} holds no campaign.json: name the parts/ folder that a campaign left")
        self.ledger: dict[str, Any] = {"preset": preset, "stages": {}}
        if known.exists():
            self.ledger |= _read_ledger(known)
        if self.ledger["preset"] != preset:
            raise TrainingError(f"{known.parent} is of preset {self.ledger['preset']}: choose it, or another --out")
        minutes, shares = load_plan(preset)
        self.ledger["total_minutes"] = total_minutes or self.ledger.get("total_minutes", minutes)
        self.budgets = {stage: share * self.ledger["total_minutes"] for stage, share in shares.items()}

    @property
    def next_stage(self) -> str | None:
        """The first stage of the plan that is not finished."""
        entries = self.ledger["stages"]
        return next((stage for stage in self.budgets if not entries.get(stage, {}).get("finished")), None)

    @property
    def steps(self) -> int:
        """Of all stages and calls."""
        return sum(entry["steps"] for entry in self.ledger["stages"].values())

    def train(self, data: Path, minutes: float, device: str, settings: list[str]) -> None:
        """Train the stages that come next until the call's minutes have passed, or a signal asks to end.

        Args:
            data: folder of images or tar shards.
            device: "cpu" or "cuda".
            settings: "key=value" strings that go over every stage's configuration, its clock excepted, and over those
                of earlier calls.

        Raises:
            TrainingError, CheckpointError, HybridFlowError: a setting or the data is wrong, or as `Run`.
        """
        for clock in ("max_minutes", "max_steps"):
            if any(setting.partition("=")[0] == clock for setting in settings):
                raise TrainingError(f"a campaign sets {clock} itself: choose its minutes by --minutes, --total-minutes")
        last = {setting.partition("=")[0]: setting for setting in [*self.ledger.get("settings", []), *settings]}
        settings = self.ledger["settings"] = list(last.values())
        end = time.monotonic() + 60 * minutes
        accelerator = start_processes(device)
        if self.init is not None and accelerator.is_main_process:
            copied = self.out / "copied"  # a kill in the middle leaves no half of it as parts
            shutil.copytree(self.init, copied, dirs_exist_ok=True)
            copied.rename(self.parts)
        accelerator.wait_for_everyone()
        self.init = None

        def minutes_left() -> float:
            return agreed(end - time.monotonic(), accelerator.device) / 60

        read: tuple | None = None  # the settings that the data was last read with
        while (stage := self.next_stage) is not None and minutes_left() > 0:
            clock = [f"max_minutes={self.budgets[stage]}", "max_steps=null"]
            config = load_config(stage, self.preset, settings + clock)
            earlier = self.ledger["stages"].get(stage, {"minutes": 0.0, "steps": 0})
            config = replace(config, seed=self._seed(stage, config.seed + earlier["steps"]))
            held = (config.streaming, config.crop, config.transpose, config.downscale, config.jitter)
            held += (config.validation_crops,)
            folder = self.out / stage
            resume = (folder / "state.pt").exists()
            init = self.parts if self.ledger["stages"] else None
            check_start(stage, self.preset, config, folder, init, resume, accelerator)
            if read is None and "refit" not in self.ledger["stages"]:
                held_out_photos(data)  # an error now, and not when it is time to freeze
            if accelerator.is_main_process:
                self._write_ledger()
            if held != read:
                photos = run = None  # memory may hold no two sets
                photos = open_photos(data, config, accelerator.device)
                validation, read = validation_crops(data, config.validation_crops, config.crop), held
            if stage == "refit" and not earlier["minutes"] and accelerator.is_main_process:
                self._freeze(data)
            accelerator.wait_for_everyone()
            spent = earlier["minutes"]
            run = Run(stage, self.preset, config, photos, folder, init, resume, accelerator, validation, spent)
            before = run.step
            run.train(minutes_left())
            here = earlier["steps"] + run.step - before  # a kill may have kept the last call from being counted
            self._keep(stage, run, max(here, run.step))
            accelerator.free_memory()  # it would hold every stage
            if not run.over or run.ended:
                break

    def _seed(self, stage: str, new: int) -> int:
        """The seed of a run that goes on, or else a new one, of the stage and, where the run is lost, of what it has
        done: it would meet the same crops as those before it."""
        known = self.out / stage / "config.yaml"
        of_stage = SEEDS_A_STAGE * list(self.budgets).index(stage)
        return load_config(stage, self.preset, [], known).seed if known.exists() else new + of_stage

    def _freeze(self, data: Path) -> None:
        """Freeze, before what reads the bits is refitted."""
        frozen = self.out / "frozen.safetensors"
        freeze_weights(self.parts, self.preset, frozen, held_out_photos(data))
        self._put(frozen, ["continuous"])

    def _put(self, weights: Path, names: Iterable[str]) -> None:
        """Let parts of a run's weights take their place in `parts`, where a kill leaves each file old or new."""
        self.parts.mkdir(parents=True, exist_ok=True)
        for path in split_parts(weights, self.out / "new", names, force=True):
            path.replace(self.parts / path.name)
        shutil.rmtree(self.out / "new")  # with what a kill left there

    def _write_ledger(self) -> None:
        self.parts.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.ledger, indent=2) + "\n"
        replace_atomically(self.parts / "campaign.json", lambda path: path.write_text(text))

    def _keep(self, stage: str, run: Run, steps: int) -> None:
        """Put the stage's parts, and what was run and measured, where the next call finds them. A call that made no
        step measured nothing, and what the one before it did stays."""
        measured = run.measured or self.ledger["stages"].get(stage, {}).get("validation", {})
        self.ledger["stages"][stage] = {
            "finished": run.over,
            "minutes": run.minutes,
            "steps": steps,
            "config": asdict(run.config),
            "validation": measured,
        }
        if run.accelerator.is_main_process:
            self._put(run.out / "weights.safetensors", [*STAGES[stage].trained, *STAGES[stage].kept])
            self._write_ledger()
        run.accelerator.wait_for_everyone()


def _read_ledger(path: Path) -> dict[str, Any]:
    try:
        return {**json.loads(path.read_text())}
    except (ValueError, TypeError):
        mend = "put a whole copy there, or go on from the parts beside it by `hybridflow train --init`"
        raise TrainingError(f"{path} is damaged: {mend}") from None
