"""A run survives what happens to processes: kills, signals, a save cut short, a split over several of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from PIL import Image
from safetensors.torch import load_file
from training_process import precision, train

from hybridflow.cli import main
from hybridflow.errors import TrainingError
from hybridflow.training.config import TrainConfig
from hybridflow.training.data import PhotoSet
from hybridflow.training.loop import Run, start_processes

HERE = Path(__file__).parent
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2")
CLOCKS = ("minutes", "images_per_second", "data_share")


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    with Image.open(photos[2]) as image:
        for number, x in enumerate((100, 250, 400), 1):
            image.crop((x, 100, x + 96, 180)).save(folder / f"{number}.png")
    return folder


@contextmanager
def started(runs, *launcher, dtype="float32"):
    """A training process, or a launcher of several that share the work: ended when the block is left."""
    arguments = json.dumps(runs, default=str), str(torch.get_num_threads()), dtype
    command = [sys.executable, *launcher, str(HERE / "training_process.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": f"{HERE.parent}:{HERE}"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def run(stage, folder, out, init, settings, resume=False):
    photos = PhotoSet(folder, "train")
    return Run(stage, SMALL, TrainConfig(**settings), photos, out, init, resume, start_processes("cpu"))


def curve(out):
    """The log without what the clock measures."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def kill(arguments, when):
    """Start a run in a process of its own, and kill it as soon as `when` is true."""
    with started([arguments]) as process:
        while not when():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_as_if_it_had_not_been(folder, every_part, tmp_path):
    """Killed at a random step, then in the middle of a save; the second process and the third resume."""
    settings = {"batch": 2, "crop": 64, "max_steps": 40, "warmup_steps": 5, "save_minutes": 0.004, "log_steps": 1}
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    state, log = killed / "state.pt", killed / "log.jsonl"
    step = random.randrange(5, 15)

    def steps():
        return len(log.read_text().splitlines()) if log.exists() else 0

    kill(["joint", folder, killed, every_part, settings], lambda: state.exists() and steps() >= step)
    saved = torch.load(state, weights_only=True)["step"]
    kill(["joint", folder, killed, None, settings], lambda: steps() >= saved + 3 and any(killed.glob(".state.pt.*")))

    resumed = run("joint", folder, killed, None, settings, resume=True)
    assert 0 < saved <= resumed.step < 40 and not any(killed.glob(".*.partial"))
    resumed.train()
    run("joint", folder, straight, every_part, settings).train()
    assert curve(killed) == curve(straight) and len(curve(straight)) == 40
    one, other = load_file(killed / "weights.safetensors"), load_file(straight / "weights.safetensors")
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_two_processes_train_as_one_does(folder, every_part, tmp_path, one_thread):
    """In float64, where they agree to 1e-9 at any seed.

    In float32 sums part in their last bits with the order they are taken in, and training lets that grow. In three of
    four runs of the joint stage one latent, within 6e-4 of a tie, rounded to the other side after 8 to 15 steps, and
    the losses parted by up to 2e-3; in the fourth none did, and they agreed to 7e-6. In float64 all agreed to 3e-13.
    """
    settings = {"batch": 4, "crop": 64, "max_steps": 20, "warmup_steps": 5, "log_steps": 1, "bf16": False}
    settings |= {"quantise_from": 0.1, "jitter": 0.1, "transpose": 0.5, "downscale": 1.25, "seed": random.randrange(99)}
    judged = {"adversarial_weight": 0.5, "adversarial_from": 0.3}
    stages = {"tokenizer": judged, "predictor": {}, "joint": {}}

    def arguments(count, stage):
        return [stage, folder, tmp_path / f"{count}-{stage}", every_part, settings | stages[stage]]

    with started([arguments("two", stage) for stage in stages], *TWO_PROCESSES, dtype="float64") as both:
        with precision("float64"):
            for stage in stages:
                train(*arguments("one", stage), start_processes("cpu"))
        _, said = both.communicate()
        assert both.returncode == 0, said
    for stage in stages:
        one, two = (curve(tmp_path / f"{count}-{stage}") for count in ("one", "two"))
        assert len(one) == len(two) == 20
        for line, other in zip(one, two):
            assert line.pop("group") == other.pop("group")
            assert line == pytest.approx(other, rel=1e-9, abs=1e-9), (stage, settings["seed"])


def test_parts_of_a_batch_add_up_to_the_whole(folder, every_part, tmp_path):
    settings = {"batch": 4, "crop": 64, "max_steps": 4, "warmup_steps": 1, "log_steps": 1, "bf16": False}
    for parts in (1, 2):
        run("correction", folder, tmp_path / str(parts), every_part, settings | {"accumulate": parts}).train()
    whole, parts = curve(tmp_path / "1"), curve(tmp_path / "2")
    assert len(whole) == 4
    for line, other in zip(whole, parts, strict=True):
        assert (other["pixels"], other["lpips"]) == pytest.approx((line["pixels"], line["lpips"]), abs=1e-5)
        assert other["gradient"] == pytest.approx(line["gradient"], rel=1e-2)
    with pytest.raises(TrainingError, match="batch=4"):
        run("correction", folder, tmp_path / "3", every_part, settings | {"accumulate": 3})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_a_save(number, folder, every_part, tmp_path):
    settings = {"batch": 1, "crop": 64, "max_steps": 9}
    stopped = run("correction", folder, tmp_path, every_part, settings)
    step, before = stopped._step, signal.getsignal(number)

    def step_under_fire():
        if stopped.step == 2:
            os.kill(os.getpid(), number)
        return step()

    stopped._step = step_under_fire
    stopped.train()
    assert stopped.step == 3 and not stopped.over and signal.getsignal(number) == before
    resumed = run("correction", folder, tmp_path, None, settings, resume=True)
    assert resumed.step == 3
    resumed.train()
    assert resumed.step == 9 and resumed.over


def test_a_save_cut_short_leaves_the_last_one(folder, every_part, tmp_path, monkeypatch):
    settings = {"batch": 1, "crop": 64, "max_steps": 3}
    saved = run("correction", folder, tmp_path, every_part, settings)
    saved.train()
    good = (tmp_path / "state.pt").read_bytes()

    def cut(state, path):
        Path(path).write_bytes(good[:1000])
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(TrainingError, match="state.pt cannot be written .no space left.: make room"):
        saved.save()
    assert (tmp_path / "state.pt").read_bytes() == good
    assert run("correction", folder, tmp_path, None, settings, resume=True).step == 3


def test_the_clock_ends_a_run(folder, every_part, tmp_path):
    stopped = run("correction", folder, tmp_path, every_part, {"batch": 1, "crop": 64, "max_minutes": 0.01})
    stopped.train()
    assert stopped.over and 0.01 <= stopped.minutes < 0.5 and stopped.step >= 1
    assert (tmp_path / "weights.safetensors").exists()


def test_runs_are_not_mixed_up(folder, every_part, tmp_path, capsys):
    settings = {"batch": 1, "crop": 64, "max_steps": 1}
    with pytest.raises(TrainingError, match="no run to resume"):
        run("correction", folder, tmp_path, None, settings, resume=True)
    run("correction", folder, tmp_path, every_part, settings).train()
    with pytest.raises(TrainingError, match="--resume"):
        run("correction", folder, tmp_path, every_part, settings)
    with pytest.raises(TrainingError, match="another stage than predictor"):
        run("predictor", folder, tmp_path, None, settings, resume=True)
    arguments = ["train", "predictor", "--resume", "--data", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert main(arguments) == 1 and "another stage than predictor" in capsys.readouterr().err  # before photos are read
    with pytest.raises(TrainingError, match="of preset {.*}: choose it"):
        arguments = TrainConfig(**settings), PhotoSet(folder), tmp_path, None, True, start_processes("cpu")
        Run("correction", "tiny", *arguments)
    path = tmp_path / "state.pt"
    older = torch.load(path, weights_only=True)
    del older["format"]
    torch.save(older, path)
    with pytest.raises(TrainingError, match="another version.*--init"):
        run("correction", folder, tmp_path, None, settings, resume=True)
