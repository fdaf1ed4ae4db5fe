"""Training runs of the small model in a process of their own: python training_process.py '[[STAGE, DATA, OUT, INIT,
SETTINGS], ...]' THREADS DTYPE; INIT is null to resume. What a launcher sets in the environment makes it one of several.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from conftest import SMALL

from hybridflow.training.config import TrainConfig
from hybridflow.training.data import PhotoSet
from hybridflow.training.loop import Run, start_processes


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """With "float64", whatever is made or cast to be float32 is float64 instead."""
    default, cast = torch.get_default_dtype(), torch.Tensor.float
    torch.set_default_dtype(getattr(torch, dtype))
    torch.Tensor.float = torch.Tensor.double if dtype == "float64" else cast
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.Tensor.float = cast


def train(stage: str, data: str, out: str, init: str | None, settings: dict, accelerator) -> Run:
    """One run, from `init`, or resumed if there is none."""
    photos, init = PhotoSet(data, "train"), None if init is None else Path(init)
    run = Run(stage, SMALL, TrainConfig(**settings), photos, Path(out), init, init is None, accelerator)
    run.train()
    return run


if __name__ == "__main__":
    runs, threads, dtype = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(threads)
    accelerator = start_processes("cpu")
    with precision(dtype):
        for arguments in runs:
            train(*arguments, accelerator)
    accelerator.wait_for_everyone()
    accelerator.end_training()
