"""Training runs of the small model in a process of their own: python training_process.py '[[STAGE, DATA, OUT, INIT,
SETTINGS], ...]'. What a launcher sets in the environment makes it one of several."""

import json
import sys
from pathlib import Path

import torch
from conftest import SMALL

from hybridflow.training.config import TrainConfig
from hybridflow.training.data import PhotoSet
from hybridflow.training.loop import Run, start_processes

if __name__ == "__main__":
    runs, threads = json.loads(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    accelerator = start_processes("cpu")
    for stage, data, out, init, settings in runs:
        photos = PhotoSet(data, "train")
        Run(stage, SMALL, TrainConfig(**settings), photos, Path(out), Path(init), False, accelerator).train()
    accelerator.wait_for_everyone()
    accelerator.end_training()
