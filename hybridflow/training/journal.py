"""What people read of a run: a line of JSON and TensorBoard scalars every few steps, and a progress bar."""

import json
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from hybridflow.saving import replace_atomically
from hybridflow.training.extra import needed

PICTURES = 8


class Journal:
    """Writes `log.jsonl` and TensorBoard's files in a run's folder. Lines that do not fit on its disk are left out with
    a warning, and TensorBoard's files end there.

    Args:
        step: the run goes on from here; what an earlier call wrote of later steps is dropped.
        total: steps of the stage if they are known.
        batch: images a step.
    """

    def __init__(self, out: Path, step: int, total: int | None, batch: int) -> None:
        self.path = out / "log.jsonl"
        lines = self.path.read_text(errors="replace").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
        replace_atomically(self.path, lambda path: path.write_text("".join(kept)))
        self.board = needed("torch.utils.tensorboard").SummaryWriter(out / "tensorboard", purge_step=step + 1)
        seconds = 0.5 if sys.stderr.isatty() else 60
        self.bar = tqdm(unit=" images", unit_scale=batch, initial=step, total=total, mininterval=seconds)

    def write(self, step: int, figures: dict[str, float], group: str = "train") -> None:
        """Add a line; on TensorBoard the figures appear as group/name."""
        with self._or_warning(), open(self.path, "a") as log:
            log.write(json.dumps({"step": step, "group": group} | figures) + "\n")
        with self._or_warning():
            for name, value in figures.items():
                self.board.add_scalar(f"{group}/{name}", value, step)
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)

    def show(self, step: int, x: Tensor, x_hat: Tensor) -> None:
        """Put images (N,3,H,W) in [0,1] and, below them, their reconstructions on TensorBoard."""
        rows = [torch.cat(list(images[:PICTURES].cpu()), -1) for images in (x, x_hat)]
        with self._or_warning():
            self.board.add_image("originals and reconstructions", torch.cat(rows, -2), step)

    def close(self) -> None:
        with self._or_warning():
            self.board.close()
        self.bar.close()

    @contextmanager
    def _or_warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            warnings.warn(f"{self.path.parent}: the log cannot be written ({error}); training goes on", stacklevel=3)


def _step_of(line: str) -> float:
    """Of a line of the log; infinity if it is none, as a full disk leaves half of one in it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
