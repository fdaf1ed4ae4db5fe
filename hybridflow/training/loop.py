"""The loop that every stage runs in: clock, schedule, averaged weights, saves, resume."""

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import load_parts
from hybridflow.model import HybridFlow, Preset
from hybridflow.training.config import TrainConfig
from hybridflow.training.data import PhotoSet
from hybridflow.training.stages import STAGES


def _replace(path: Path, write) -> None:
    """Write beside `path`, then take its place: a kill in the middle leaves the last good file."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)


class Run:
    """One stage's training run in a folder of its own.

    Leaves `config.json`, `log.jsonl` (a line every `log_every` steps), `state.pt` (all that `resume` needs) and
    `weights.safetensors` (averaged weights of every part, model and ablations).
    """

    log_every = 50

    def __init__(
        self,
        stage: str,
        preset: str | Preset,
        config: TrainConfig,
        photos: PhotoSet,
        out: Path,
        init: Path | None,
        resume: bool,
        device: str,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.photos, self.out, self.device = config, photos, out, device
        self.generator = torch.Generator().manual_seed(config.seed)
        model = HybridFlow(preset)
        ablations = Ablations(model.preset)
        loaded = load_parts(init, model, ablations) if init is not None else set()
        self.stage = STAGES[stage](model, ablations, config, photos, self.generator)
        self.step, self.minutes = 0, 0.0
        out.mkdir(parents=True, exist_ok=True)
        record = {"stage": stage, "preset": preset} | asdict(config)
        (out / "config.json").write_text(json.dumps(record, indent=1, default=asdict))
        if not resume:
            self.stage.begin(loaded)
        self.stage.to(device, memory_format=torch.channels_last).train()
        parameters = [p for p in self.stage.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(parameters, config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = {name: p.detach().clone() for name, p in self._trained()}
        if resume:
            self._load()

    def _trained(self):
        return ((name, p) for name, p in self.stage.named_parameters() if p.requires_grad)

    @property
    def progress(self) -> float:
        """Share of the stage that has passed, by steps if they are given, else by the clock."""
        if self.config.max_steps is not None:
            return self.step / self.config.max_steps
        return self.minutes / self.config.max_minutes

    def train(self) -> None:
        """Train until the clock or the steps run out; skip and count steps whose gradient is not finite."""
        last_save = last_tick = time.monotonic()
        skipped, totals = 0, {}
        bar = tqdm(unit=" steps", initial=self.step, total=self.config.max_steps, mininterval=10)
        while self.progress < 1 and self.minutes < self.config.max_minutes:
            terms = self._step()
            skipped += not math.isfinite(terms["gradient"])
            for name, value in terms.items():
                totals.setdefault(name, []).append(value)
            self.step += 1
            now = time.monotonic()
            self.minutes += (now - last_tick) / 60
            last_tick = now
            bar.update()
            if self.step % self.log_every == 0:
                means = {name: round(sum(v) / len(v), 5) for name, v in totals.items()}
                record = {"step": self.step, "minutes": round(self.minutes, 3), "skipped": skipped} | means
                with open(self.out / "log.jsonl", "a") as log:
                    log.write(json.dumps(record) + "\n")
                bar.set_postfix({k: f"{v:.4g}" for k, v in means.items()})
                totals = {}
            if now - last_save > 60 * self.config.save_minutes:
                self.save()
                last_save = now
        bar.close()
        self.save()

    def _step(self) -> dict[str, float]:
        c = self.config
        rate = c.learning_rate * min(1.0, (self.step + 1) / c.warmup_steps)
        rate *= 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, self.progress)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        x = self.photos.crops(c.batch, c.crop, self.generator)
        x = x.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            loss, terms = self.stage.loss(x, self.progress)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for _, p in self._trained()]
        gradient = torch.nn.utils.clip_grad_norm_(parameters, c.clip)
        if torch.isfinite(gradient):
            self.optimiser.step()
            self._follow_average()
        terms = {"loss": loss.detach()} | terms | {"gradient": gradient}
        return {name: float(value) for name, value in terms.items()}

    @torch.no_grad()
    def _follow_average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        trained = [p for _, p in self._trained()]
        torch._foreach_lerp_(list(self.average.values()), trained, 1 - decay)

    def averaged_weights(self) -> dict[str, Tensor]:
        """Every part's weights, averaged where trained, keyed as checkpoints are: part name first."""
        weights = {}
        for name, value in self.stage.state_dict().items():
            owner, _, key = name.partition(".")
            if owner in ("model", "ablations"):
                weights[key] = self.average.get(name, value).detach().cpu().contiguous()
        return weights

    def save(self) -> None:
        state = {
            "stage": self.stage.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "minutes": self.minutes,
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
        }
        _replace(self.out / "state.pt", lambda path: torch.save(state, path))
        _replace(self.out / "weights.safetensors", lambda path: save_file(self.averaged_weights(), path))

    def _load(self) -> None:
        state = torch.load(self.out / "state.pt", map_location=self.device, weights_only=True)
        self.stage.load_state_dict(state["stage"])
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.minutes = state["step"], state["minutes"]
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["rng"].cpu())
