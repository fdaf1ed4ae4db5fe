"""Training: every stage moves exactly its parts, learns, and goes on after a kill as if nothing had happened."""

import dataclasses
import gc
import io
import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import warnings
import weakref
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, random_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hybridflow.ablation import Ablations
from hybridflow.cli import main
from hybridflow.draws import Draws
from hybridflow.errors import TrainingError
from hybridflow.model import PRESETS
from hybridflow.training import loop
from hybridflow.training.config import TrainConfig, load_config
from hybridflow.training.data import (
    AREA_POWER,
    Augmentation,
    PackedPhotos,
    PhotoSet,
    decode_photo,
    jitter_colour,
    validation_crops,
)
from hybridflow.training.freeze import freeze_weights
from hybridflow.training.journal import Journal
from hybridflow.training.loop import Run, _ended_by_signals, start_processes
from hybridflow.training.stages import STAGES, Stage
from hybridflow.training.streaming import StreamedPhotos, _whole_ones, open_photos
from hybridflow.training.validation import validate

CONFIG = TrainConfig(batch=2, crop=64, max_steps=3, warmup_steps=1, log_steps=1)
PARTS = {
    "tokenizer": {"codebook_encoder", "codebook", "pixel_decoder"},
    "continuous": {"continuous", "light_synthesis"},
    "predictor": {"predictor", "blind_predictor", "index_prior"},
    "correction": {"correction"},
    "joint": {"continuous", "correction", "pixel_decoder", "predictor", "index_prior"},
    "refit": {"correction", "pixel_decoder", "predictor", "index_prior"},
    "transforms": {"continuous", "correction", "pixel_decoder", "predictor"},
    "baseline": {"continuous_alone", "continuous_decoder"},
    "codebook-only": {"codebook_decoder"},
    "perceptual": {"perceptual"},
}
ADVERSARIAL = replace(CONFIG, adversarial_weight=0.5, adversarial_from=0.3)


@pytest.fixture(scope="module")
def crops(photos):
    with Image.open(photos[2]) as image:
        return [image.crop((x, 100, x + 96, 180)) for x in (200, 420)]


@pytest.fixture(scope="module")
def folder(crops, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, crop in enumerate(crops, 1):
        crop.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def photo_set(folder):
    return PhotoSet(folder, "train")


@pytest.fixture(scope="module")
def init(every_part):
    return every_part


def draws_of_a_step():
    """What a step of two samples draws, from its start."""
    return Draws(0, 0, torch.arange(2))


def part_of(key):
    return key.partition(".")[0]


def start(stage, photo_set, out, init=None, config=CONFIG, resume=False, watched=None):
    return Run(stage, SMALL, config, photo_set, out, init, resume, start_processes("cpu"), watched)


def test_correction_keeps_the_codebook_decoder_for_ablations(photo_set, init, tmp_path):
    weights = {key: v for key, v in load_file(init).items() if not key.startswith("codebook_decoder")}
    save_file(weights, tmp_path / "predictor.safetensors")
    start("correction", photo_set, tmp_path, tmp_path / "predictor.safetensors").train()
    after = load_file(tmp_path / "weights.safetensors")
    for key, value in weights.items():
        if key.startswith("pixel_decoder."):
            assert torch.equal(after[key.replace("pixel_decoder.", "codebook_decoder.", 1)], value)


def test_only_parts_that_were_loaded_or_trained_are_written(photo_set, tmp_path):
    start("tokenizer", photo_set, tmp_path / "first").train()
    state = torch.load(tmp_path / "first" / "state.pt", weights_only=True)["stage"]
    assert {key.split(".")[1] for key in state} == PARTS["tokenizer"]
    assert {part_of(key) for key in load_file(tmp_path / "first" / "weights.safetensors")} == PARTS["tokenizer"]
    first = tmp_path / "first" / "weights.safetensors"
    start("continuous", photo_set, tmp_path / "second", first).train()
    written = PARTS["tokenizer"] | PARTS["continuous"]
    assert {part_of(key) for key in load_file(tmp_path / "second" / "weights.safetensors")} == written
    longer = replace(CONFIG, max_steps=4)
    start("continuous", photo_set, tmp_path / "second", config=longer, resume=True).train()
    assert {part_of(key) for key in load_file(tmp_path / "second" / "weights.safetensors")} == written


def test_the_baseline_starts_as_what_the_hybrid_makes_of_the_mean_codeword(photo_set, init, tmp_path):
    stage = start("baseline", photo_set, tmp_path, init).stage.eval()
    stage.model.continuous.exact.thaw()
    x, quality = torch.rand(1, 3, 64, 64), torch.tensor([40])
    with torch.no_grad():
        y_hat = stage.codec(x, quality).y_hat
        assert torch.equal(y_hat, stage.model.continuous(x, quality).y_hat)
        codes = stage.model.codebook.codewords.mean(0)[None, :, None, None].expand(1, -1, 4, 4)
        assert torch.allclose(stage.synthesis(y_hat), stage.model.merge(codes, y_hat), atol=1e-5)


def test_the_codebook_stream_alone_learns_to_decode_all_indices_and_some(photo_set, init, tmp_path, monkeypatch):
    stage, masks = start("codebook-only", photo_set, tmp_path, init).stage, []
    fill_in = stage.model.fill_in
    monkeypatch.setattr(stage.model, "fill_in", lambda *seen: masks.append(seen[1]) or fill_in(*seen))
    stage("loss", torch.rand(32, 3, 64, 64), Draws(0, 0, torch.arange(32)), 0.0)
    assert 8 < masks[0].flatten(1).all(1).sum() < 24


def test_the_continuous_stage_goes_on_from_its_own_parts(photo_set, init, tmp_path):
    weights = load_file(init)
    run = start("continuous", photo_set, tmp_path, init, replace(CONFIG, relaxed_rate=1.0))
    for name, value in run.averaged_weights().items():
        if part_of(name) in PARTS["continuous"] and ".exact." not in name:
            assert torch.equal(value, weights[name])


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_changes_exactly_its_parts(stage, photo_set, init, tmp_path):
    run = start(stage, photo_set, tmp_path, init)
    run.train()
    before, after = load_file(init), load_file(tmp_path / "weights.safetensors")
    assert set(before) <= set(after)
    changed = {part_of(key) for key in after if key not in before or not torch.equal(before[key], after[key])}
    assert PARTS[stage] == set(STAGES[stage].trained)
    assert changed == PARTS[stage]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3] and log[-1]["skipped"] == 0
    assert all(record["loss"] > 0 for record in log)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["stage"] == stage and config["batch"] == 2 and config["preset"]["num_codes"] == SMALL.num_codes


@pytest.mark.parametrize("stage", STAGES)
def test_every_weight_that_a_stage_trains_gets_a_gradient(stage, photo_set, init, tmp_path):
    run = start(stage, photo_set, tmp_path, init)
    run._step()
    without = [name for name, p in run.trained["loss"].items() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("stage", ["tokenizer", "perceptual"])
def test_a_discriminator_trains_beside_the_decoder_and_is_not_released(stage, photo_set, init, tmp_path):
    run = start(stage, photo_set, tmp_path, init, ADVERSARIAL)
    before = {name: p.detach().clone() for name, p in run.trained["judge"].items()}
    assert before and not set(before) & set(run.trained["loss"])
    run.train()
    assert all(not torch.equal(p, before[name]) for name, p in run.trained["judge"].items())
    parts = {part_of(key) for key in load_file(tmp_path / "weights.safetensors")}
    assert parts == PARTS[stage] | {part_of(key) for key in load_file(init)}
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["fooling"] != 0 for record in log] == [False, True, True]
    assert [record["judge"] > 0 for record in log] == [False, True, True]
    assert all(record["judge_gradient"] > 0 for record in log[1:])

    _, terms = run.stage.eval()("loss", torch.rand(1, 3, 64, 64), Draws(0, 0, torch.arange(1)), 1.0)
    assert "fooling" not in terms  # a validation is none of its batches
    longer = start(stage, photo_set, tmp_path, init, replace(ADVERSARIAL, max_steps=4), resume=True)
    after = {name: p.detach().clone() for name, p in longer.trained["judge"].items()}
    assert all(torch.equal(p, after[name]) for name, p in run.trained["judge"].items())


@pytest.mark.parametrize("stage", ["tokenizer", "perceptual"])
def test_a_resumed_run_with_a_discriminator_goes_on_as_an_unbroken_one(stage, photo_set, init, tmp_path, one_thread):
    """Codebook averages and both optimisers included."""
    config = replace(ADVERSARIAL, max_steps=5, quantise_from=0.0)
    start(stage, photo_set, tmp_path / "straight", init, config).train()
    broken = start(stage, photo_set, tmp_path / "broken", init, config)
    for _ in range(3):  # of which the last has the discriminator join
        broken._step()
        broken.step += 1
    broken.save()
    start(stage, photo_set, tmp_path / "broken", init, config, resume=True).train()
    one, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("straight", "broken"))
    assert one.keys() == other.keys() and [key for key in one if not torch.equal(one[key], other[key])] == []


def test_the_perceptual_decoder_starts_from_the_first_or_goes_on(photo_set, init, tmp_path):
    first = start("perceptual", photo_set, tmp_path / "first", init)
    for name, part in first.stage.model.perceptual.named_children():
        for key, value in part.state_dict().items():
            assert torch.equal(value, getattr(first.stage.model, name).state_dict()[key])
    first.train()
    x, decoders = torch.rand(1, 3, 64, 64), (first.stage.model, first.stage.model.perceptual)
    with torch.no_grad():
        for moved in decoders:  # the second alone is what a validation sees
            before, _ = first.stage.eval().reconstruct(x)
            moved.pixel_decoder.head[-1].bias.add_(0.1)
            after, _ = first.stage.reconstruct(x)
            assert torch.equal(before, after) == (moved is first.stage.model)
    second = start("perceptual", photo_set, tmp_path / "second", tmp_path / "first" / "weights.safetensors")
    fidelity = load_file(init)
    left = {name: p for name, p in first.averaged_weights().items() if part_of(name) == "perceptual"}
    assert all(not torch.equal(value, fidelity[name.removeprefix("perceptual.")]) for name, value in left.items())
    assert all(torch.equal(second.averaged_weights()[name], value) for name, value in left.items())


def test_the_perceptual_decoder_is_trained_for_textures(photo_set, init, tmp_path):
    start("perceptual", photo_set, tmp_path, init, replace(CONFIG, texture_weight=16.0)).train()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(record["loss"] > 16 * record["texture"] > 0 for record in log)


@pytest.mark.parametrize(
    "setting, stages",
    [
        ("adversarial_weight", "tokenizer or perceptual"),
        ("texture_weight", "perceptual"),
        ("mse_weight", "baseline"),
    ],
)
def test_what_a_stage_cannot_be_trained_for_is_refused(setting, stages, photo_set, init, tmp_path):
    with pytest.raises(TrainingError, match=f"{setting} is for the {stages} stage: leave it at 0"):
        start("joint", photo_set, tmp_path, init, replace(CONFIG, **{setting: 0.5}))


def test_a_baseline_of_the_continuous_stream_is_trained_for_the_squared_error(photo_set, init, tmp_path):
    config = replace(CONFIG, mse_weight=40.0)
    run = start("baseline", photo_set, tmp_path, init, config)
    run.train()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(record["mse"] > 0 and "lpips" not in record for record in log)


@pytest.mark.parametrize("stage", [name for name, stage in STAGES.items() if stage.reads])
def test_a_stage_names_the_parts_that_it_lacks(stage, photo_set, init, tmp_path):
    missing = STAGES[stage].reads[-1]
    assert set(STAGES[stage].reads) <= {part_of(key) for key in load_file(init)}
    rest = {key: value for key, value in load_file(init).items() if part_of(key) != missing}
    save_file(rest, tmp_path / "rest.safetensors")
    with pytest.raises(TrainingError, match=rf"{stage} needs {missing}: .*--init"):
        start(stage, photo_set, tmp_path / "run", tmp_path / "rest.safetensors")
    assert not (tmp_path / "run").exists()


def test_frozen_parts_stay_in_eval_mode(photo_set, init, tmp_path):
    stage = start("predictor", photo_set, tmp_path, init).stage
    assert stage.model.predictor.training and stage.model.index_prior.training
    assert not stage.model.continuous.training and not stage.model.codebook.training


def test_a_stage_with_a_misspelt_part_is_refused(photo_set):
    class Misspelt(Stage):
        trained = ("pixel_decoder", "predictr")

    with pytest.raises(AttributeError, match="predictr"):
        Misspelt(random_model(0), Ablations(SMALL), CONFIG, photo_set)


def test_every_stage_overfits_two_pictures(tmp_path, one_thread):
    """Stage after stage, each from the one before. The averaged weights' loss, at 16 fixed draws of qualities, masks
    and shifts, falls at least to the share that stands here of what the stage started with."""
    steps_and_share = {
        "tokenizer": (90, 0.5),
        "continuous": (50, 0.75),
        "predictor": (80, 0.75),
        "correction": (50, 0.93),
        "joint": (50, 0.87),
        "refit": (50, 0.95),
        "transforms": (50, 0.95),
        "baseline": (50, 0.9),
        "codebook-only": (50, 0.9),
        "perceptual": (50, 0.95),
    }
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = (x - 32) ** 2 + (y - 32) ** 2 < 400
    picture = (255 * torch.stack([(x + y) / 128, (x / 8).sin() / 2 + 0.5, disc.float()], -1)).byte()
    for number, pixels in enumerate((picture, 255 - picture.flip(0)), 1):
        for folder, tiles in ("small", 1), ("large", 4):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels.repeat(tiles, tiles, 1).numpy()).save(tmp_path / folder / f"{number}.png")
    photos, init = PhotoSet(tmp_path / "small"), None
    watched = photos.centre_crops(2, 64).repeat(8, 1, 1, 1)
    assert set(steps_and_share) == set(STAGES)
    for stage, (steps, share) in steps_and_share.items():
        if stage == "refit":
            freeze_weights(init, SMALL, tmp_path / "frozen.safetensors", PhotoSet(tmp_path / "large"))
            init = tmp_path / "frozen.safetensors"
        paces = {"warmup_steps": 5, "learning_rate": 1e-2, "quantise_from": 0.2, "relaxed_rate": 1.0}
        config = TrainConfig(batch=2, crop=64, max_steps=steps, **paces)
        run = start(stage, photos, tmp_path / stage, init, config, watched=watched)
        run._validate(None)
        before = run.measured["loss"]
        run.train()
        assert run.measured["loss"] < share * before, stage
        init = tmp_path / stage / "weights.safetensors"


def test_validation_measures_averaged_weights_and_keeps_the_best(photo_set, init, tmp_path):
    config = dataclasses.replace(CONFIG, max_steps=40, validate_minutes=0, patience=3, learning_rate=1e-9)
    crops = photo_set.centre_crops(2, 64)
    run = Run("joint", SMALL, config, photo_set, tmp_path, init, False, start_processes("cpu"), crops)
    name, parameter = next(iter(run.trained["loss"].items()))
    places = run.average[name].data_ptr(), parameter.data_ptr()
    run.train()
    assert run.over and run.step < 40 and run.since_best == 3  # nothing is learned at that rate
    assert (run.average[name].data_ptr(), parameter.data_ptr()) == places  # swapped, and swapped back
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    figures = [line for line in lines if line["group"] == "validation"]
    assert figures[0]["bpp"] == pytest.approx(sum(figures[0][f"bpp_{part}"] for part in ("y", "z", "indices")))
    assert figures[0]["psnr"] > 3 and figures[0]["lpips"] > 0 and min(line["loss"] for line in figures) == run.best
    assert set(load_file(tmp_path / "best.safetensors")) == set(load_file(tmp_path / "weights.safetensors"))
    assert 0 < figures[0]["codebook_usage"] * SMALL.num_codes <= SMALL.num_codes
    assert 1 <= figures[0]["codebook_perplexity"] <= figures[0]["codebook_usage"] * SMALL.num_codes
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    told = {f"{line['group']}/{name}" for line in lines for name in line if name not in ("step", "group")}
    assert set(board.Tags()["scalars"]) == told
    assert board.Images("originals and reconstructions")[0].width == 2 * 64
    run.skipped, run.totals = 2, {"loss": 3.0, "steps": 2}
    run.save()
    resumed = start("joint", photo_set, tmp_path, config=config, resume=True)
    for name in ("step", "minutes", "skipped", "best", "since_best", "totals"):
        assert getattr(resumed, name) == getattr(run, name)


def test_averages_follow_the_weights_and_are_validated_and_written(photo_set, init, tmp_path, monkeypatch):
    run = start("correction", photo_set, tmp_path, init, watched=photo_set.centre_crops(1, 64))
    name, parameter = next(iter(run.trained["loss"].items()))
    first = parameter.detach().clone()
    run._step()
    decay = 1 / 10  # at step 0
    torch.testing.assert_close(run.average[name], decay * first + (1 - decay) * parameter.detach())
    validated = []

    def see(stage, crops):
        validated.append(parameter.detach().clone())
        return {"loss": 1.0}, crops

    monkeypatch.setattr("hybridflow.training.loop.validate", see)
    run.since_best = 2
    run._validate(None)
    assert (run.best, run.since_best) == (1.0, 0)
    run.save()
    assert torch.equal(validated[0], run.average[name]) and not torch.equal(parameter, run.average[name])
    for file in ("best", "weights"):
        written = load_file(tmp_path / f"{file}.safetensors")
        assert torch.equal(written[name.removeprefix("model.")], run.average[name])


def test_a_step_goes_at_its_rate_along_a_clipped_gradient(photo_set, init, tmp_path):
    """Up by steps, down by a cosine to a hundredth; AdamW's rate is a half of Muon's."""
    config = replace(CONFIG, max_steps=100, warmup_steps=10, learning_rate=1e-3, clip=1e-3)
    run = start("correction", photo_set, tmp_path, init, config)
    rates = {}
    for run.step in (0, 50, 100):
        rates[run.step] = run._learning_rate()
    assert rates == pytest.approx({0: 1e-4, 50: 5.05e-4, 100: 1e-5})
    terms = run._step()
    assert terms["learning_rate"] == pytest.approx(1e-5)
    groups = [group for optimiser in run.optimisers["loss"] for group in optimiser.param_groups]
    assert [group["lr"] for group in groups] == pytest.approx([1e-5, 5e-6])
    norm = sum(float(p.grad.square().sum()) for p in run.trained["loss"].values()) ** 0.5
    assert terms["gradient"] > 2e-3 and norm == pytest.approx(1e-3, rel=1e-2)


def test_a_short_stage_is_warm_after_a_tenth(photo_set, init, tmp_path):
    config = replace(CONFIG, max_steps=100, warmup_steps=300, learning_rate=1e-3)
    run = start("correction", photo_set, tmp_path, init, config)
    rates = []
    for run.step in (0, 5, 10, 50):
        rates.append(run._learning_rate())
    assert rates == pytest.approx([1e-3 / 300, 0.5 * 9.94e-4, 9.76e-4, 5.05e-4], rel=1e-3)


def test_a_run_whose_state_is_lost_warms_up_anew(photo_set, init, tmp_path):
    """Its optimisers start anew, some minutes into the stage."""
    config = replace(CONFIG, max_steps=None, max_minutes=10, warmup_steps=300, learning_rate=1e-3)
    run = Run("correction", SMALL, config, photo_set, tmp_path, init, False, start_processes("cpu"), minutes=5.0)
    assert run._learning_rate() == pytest.approx(5.05e-4 / 300)
    run.minutes = 5.5
    assert run._learning_rate() == pytest.approx(0.5 * 4.27e-4, rel=1e-2)
    run.save()
    assert start("correction", photo_set, tmp_path, config=config, resume=True).began == 0.5


def test_the_clock_paces_validations_saves_and_calls(photo_set, init, tmp_path, monkeypatch):
    """At half a minute a step, where the minutes end before the steps do. A line of the log holds its steps' means."""
    paces = {"max_minutes": 5.0, "validate_minutes": 1.0, "save_minutes": 1.5, "log_steps": 4, "accumulate": 2}
    config = replace(CONFIG, max_steps=100, **paces)
    run = start("correction", photo_set, tmp_path, init, config, watched=photo_set.centre_crops(1, 64))
    done = []
    monkeypatch.setattr("hybridflow.training.loop.time", SimpleNamespace(monotonic=itertools.count(0, 30).__next__))
    monkeypatch.setattr(run, "_step", lambda: {"loss": float(run.step), "seconds": 4.0, "data_seconds": 1.0})
    monkeypatch.setattr(run, "_validate", lambda journal: done.append(f"validated {run.step}"))
    monkeypatch.setattr(run, "save", lambda: done.append(f"saved {run.step}"))
    run.train(minutes=2.25)
    assert done == ["validated 2", "saved 3", "validated 4", "validated 5", "saved 5"] and not run.over
    done.clear()
    run.train()
    assert done == ["validated 7", "saved 8", "validated 9", "validated 10", "saved 10"] and run.over
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    told = [[line[name] for name in ("step", "loss", "minutes", "images_per_second", "data_share")] for line in lines]
    assert told == [[4, 1.5, 2.0, 0.5, 0.25], [8, 5.5, 4.0, 0.5, 0.25]]


def test_a_new_stage_is_begun_and_one_whose_state_is_lost_is_not(photo_set, init, tmp_path):
    """A baseline begins with the hybrid's own parts."""
    weights, arguments = load_file(init), ("baseline", SMALL, CONFIG, photo_set, tmp_path, init, False)
    for minutes in (0.0, 2.0):
        run = Run(*arguments, start_processes("cpu"), minutes=minutes)
        assert run.minutes == minutes
        for name, value in run.averaged_weights().items():
            if name.startswith("continuous_decoder.correction."):
                begun = weights[name.replace("continuous_decoder.", "")]
                assert torch.equal(value, weights[name] if minutes else begun)


@pytest.mark.parametrize("has_correction", [False, True])
def test_correction_begins_with_the_light_synthesis_unless_it_goes_on(has_correction, photo_set, init, tmp_path):
    weights = load_file(init)
    given = {key: value for key, value in weights.items() if has_correction or part_of(key) != "correction"}
    save_file(given, tmp_path / "given.safetensors")
    trunk = start("correction", photo_set, tmp_path, tmp_path / "given.safetensors").stage.model.correction.trunk
    begun = "correction.trunk." if has_correction else "light_synthesis.trunk."
    assert all(torch.equal(value, weights[begun + key]) for key, value in trunk.state_dict().items())


def test_what_no_file_gives_comes_of_the_seed(photo_set, tmp_path):
    first, again = (start("tokenizer", photo_set, tmp_path).averaged_weights() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_second_signal_is_not_held_back(request, monkeypatch):
    monkeypatch.setattr(loop, "ONE_ASKING", 0.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background job it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), _ended_by_signals() as ended:
        signal.raise_signal(signal.SIGINT)
        assert ended == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)


def test_two_signals_at_once_are_one():
    with _ended_by_signals() as ended:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert ended == [signal.SIGTERM, signal.SIGTERM]


def test_a_signal_that_a_launcher_hands_on_is_one_more_of_the_first(monkeypatch):
    monkeypatch.setattr(loop, "processes", lambda: 2)
    monkeypatch.setattr(loop, "ONE_ASKING", 0.0)
    with _ended_by_signals() as ended:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            signal.raise_signal(number)
    assert ended == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT]


class Grey:
    """A stage that decodes all as 1.2, with an index of 0 to 7 by the level; it notes what it is asked."""

    def __init__(self):
        self.asked = []
        self.model = self.codebook = self
        self.num_codes = 8
        self.distortion = SimpleNamespace(lpips=lambda a, b: (a - b).abs().mean((1, 2, 3), keepdim=True))

    def __call__(self, turn, x, draws, progress):
        self.asked.append((turn, progress, draws.uniform().tolist()))
        return x.mean(), {}

    def eval(self):
        self.asked.append("eval")

    def train(self):
        self.asked.append("train")

    def indices_of(self, x):
        return (8 * x[:, 0, ::32, ::32]).long()

    def reconstruct(self, x):
        return torch.full_like(x, 1.2), {"bpp_y": x[:, 0, 0, 0], "bpp_z": 2 * x[:, 0, 0, 0]}


def test_a_validation_averages_its_crops_in_eval_mode(monkeypatch):
    """In batches of two and one; what is decoded is clamped and rounded."""
    monkeypatch.setattr("hybridflow.training.validation.BATCH", 2)
    levels = torch.tensor([0.2, 0.2, 0.6])
    stage, crops = Grey(), levels[:, None, None, None].expand(-1, 3, 32, 32)
    figures, x_hat = validate(stage, crops)
    assert torch.equal(x_hat, torch.ones(3, 3, 32, 32))
    assert figures == pytest.approx(
        {
            "loss": 1 / 3,
            "psnr": (-40 * math.log10(0.8) - 20 * math.log10(0.4)) / 3,
            "lpips": 2 * (0.8 + 0.8 + 0.4) / 3,
            "bpp": 1.0,
            "bpp_y": 1 / 3,
            "bpp_z": 2 / 3,
            "codebook_usage": 2 / 8,
            "codebook_perplexity": 3 / 2 ** (2 / 3),  # a third and two thirds
        },
        rel=1e-5,
    )
    drawn = Draws(0, 0, torch.arange(3)).uniform().tolist()
    assert stage.asked == ["eval", ("loss", 1.0, drawn[:2]), ("loss", 1.0, drawn[2:]), "train"]


def test_a_step_without_finite_gradient_is_skipped(photo_set, init, tmp_path):
    run = start("correction", photo_set, tmp_path, init)
    before = {name: p.detach().clone() for name, p in run.trained["loss"].items()}
    loss = run.stage.loss
    run.stage.loss = lambda x, draws, progress: (loss(x, draws, progress)[0] * float("nan"), {})
    run.train()
    assert run.skipped == run.step == CONFIG.max_steps and run.totals == {}
    assert all(torch.equal(p, before[name]) for name, p in run.trained["loss"].items())
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in log] == list(range(1, run.step + 1))


def test_a_step_of_two_turns_is_skipped_once(photo_set, init, tmp_path):
    run = start("tokenizer", photo_set, tmp_path, init, replace(ADVERSARIAL, adversarial_from=0.0))
    for turn in run.stage.turns:
        good = getattr(run.stage, turn)
        setattr(run.stage, turn, lambda *a, good=good: (good(*a)[0] * math.nan, {}))
    run.train()
    assert run.skipped == run.step == CONFIG.max_steps


def test_a_run_gives_up_when_no_gradient_is_finite_any_more(photo_set, init, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SKIPPED_MOST", 3)
    run = start("correction", photo_set, tmp_path, init, replace(CONFIG, max_steps=9))
    loss, finite = run.stage.loss, iter([False, False, True, False, False, False])
    run.stage.loss = lambda x, draws, progress: (loss(x, draws, progress)[0] * (1 if next(finite) else math.nan), {})
    with pytest.raises(TrainingError, match="no gradient of 3 steps was finite: lower learning_rate"):
        run.train()
    assert next(finite, None) is None


def test_a_full_disk_costs_no_more_than_a_save(photo_set, init, tmp_path, monkeypatch):
    run = start("correction", photo_set, tmp_path, init, replace(CONFIG, save_minutes=0.0))
    save, saves = torch.save, []

    def full(state, path):
        saves.append(path)
        if len(saves) in full_at:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
        save(state, path)

    full_at = {2, 3}
    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="state.pt cannot be written .*training goes on") as caught:
        run.train()
    assert len([warning for warning in caught if "cannot be written" in str(warning.message)]) == 2
    assert run.step == CONFIG.max_steps and torch.load(tmp_path / "state.pt", weights_only=True)["step"] == run.step
    full_at = {len(saves) + 1}
    with pytest.raises(TrainingError, match="make room on its disk; what was saved before is left"):
        run.save()
    assert start("correction", photo_set, tmp_path, init, resume=True).step == run.step


def test_a_log_that_does_not_fit_is_no_end_of_a_run(tmp_path, monkeypatch):
    journal = Journal(tmp_path, 0, None, 1)

    def full(*_):
        raise OSError("No space left")

    for name in ("add_scalar", "add_image", "close"):
        monkeypatch.setattr(journal.board, name, full)
    monkeypatch.setattr("builtins.open", full)
    with pytest.warns(UserWarning, match="the log cannot be written .*No space left.*training goes on") as caught:
        journal.write(1, {"loss": 1.0})
        journal.show(1, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
        journal.close()
    assert len(caught) == 4
    monkeypatch.undo()
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "lo{"step": 3}\n{"step": 4}\n')  # half a line fitted
    Journal(tmp_path, 4, None, 1).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 4}\n'


def test_a_best_that_was_not_written_is_none(photo_set, init, tmp_path, monkeypatch):
    run = start("correction", photo_set, tmp_path, init, watched=torch.rand(1, 3, 64, 64))
    figures = iter([2.0, 1.0, 1.5])
    monkeypatch.setattr(loop, "validate", lambda *_: ({"loss": next(figures)}, None))
    save = loop.save_parts

    def full(path, weights):
        raise OSError("No space left")

    for writes, best in ((save, 2.0), (full, 2.0), (save, 1.5)):
        monkeypatch.setattr(loop, "save_parts", writes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run._validate(None)
        assert run.best == best and run.since_best == 0


@pytest.mark.parametrize("name, content", [("state.pt", b"PK\3\4 cut"), ("state.pt", b""), ("config.yaml", b"")])
def test_a_run_folder_that_is_damaged_is_named(name, content, photo_set, init, tmp_path):
    start("correction", photo_set, tmp_path, init).train()
    (tmp_path / name).write_bytes(content)
    for _ in range(2 if name == "config.yaml" else 1):
        with pytest.raises(TrainingError, match=f"{name} is damaged.*: go on from its weights.safetensors by --init"):
            start("correction", photo_set, tmp_path, init, resume=True)
        (tmp_path / name).unlink(missing_ok=True)


def test_weights_whose_state_is_gone_are_not_overwritten(photo_set, init, tmp_path):
    start("correction", photo_set, tmp_path, init).train()
    (tmp_path / "state.pt").unlink()
    with pytest.raises(TrainingError, match="state.pt is gone: take them elsewhere"):
        start("correction", photo_set, tmp_path, init)


def test_a_log_that_is_none_ends_no_run(photo_set, init, tmp_path):
    start("correction", photo_set, tmp_path, init).train()
    log = tmp_path / "log.jsonl"
    good = log.read_bytes()
    log.write_bytes(good + b"[]\n{}\n\xff\n" + b'{"step": null}\n')
    start("correction", photo_set, tmp_path, init, resume=True).train()
    assert log.read_bytes() == good


def test_what_does_not_fit_into_memory_is_named(photo_set, init, tmp_path):
    run = start("correction", photo_set, tmp_path, init)

    def full(x, draws, progress):
        raise torch.OutOfMemoryError

    run.stage.loss = full
    with pytest.raises(TrainingError, match="raise accumulate"):
        run.train()


@pytest.mark.parametrize("module", ["accelerate", "tensorboard", "timm"])
def test_what_is_not_installed_is_named(module, folder, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", module))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    arguments = ["train", "continuous", "--data", str(folder), "--out", str(tmp_path), "--set", "crop=64", "batch=1"]
    assert main([*arguments, "--max-steps", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert module in error and 'pip install "hybridflow[train]"' in error


def test_using_a_model_takes_nothing_that_only_training_needs():
    code = "import sys, hybridflow.cli, hybridflow.codec; print(*sys.modules)"
    modules = set(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.decode().split())
    training = {"accelerate", "tensorboard", "timm", "webdataset", "hybridflow.training"}
    assert "torch" in modules and not modules & training


def test_channels_are_woken_in_a_new_codec_alone(photo_set):
    def woken(loaded):
        stage = STAGES["continuous"](model := random_model(0), Ablations(SMALL), CONFIG, photo_set)
        last = model.continuous.analysis.net[-1]
        with torch.no_grad():
            model.codebook_encoder.net[-1].weight.mul_(1e-4)
            last.weight.mul_(1e-4)
            before = last.weight.clone()
        stage.begin(loaded)
        return last.weight.norm() > 10 * before.norm()

    assert woken({"codebook_encoder"}) and not woken({"codebook_encoder", "continuous"})


def test_lambda_starts_relaxed(photo_set):
    stage = STAGES["continuous"](random_model(0), Ablations(SMALL), CONFIG, photo_set)
    quality = torch.tensor([0, 63])
    whole = stage.rate_weight(quality, 1.0)
    torch.testing.assert_close(stage.rate_weight(quality, 0.0), CONFIG.relaxed_rate * whole)
    torch.testing.assert_close(stage.rate_weight(quality, CONFIG.relaxed_until), whole)


@pytest.mark.parametrize("stage", ["continuous", "baseline", "joint", "transforms"])
def test_rate_counts_by_the_relaxed_lambda_and_noise_is_the_samples_own(stage, photo_set, init, tmp_path):
    stage, x = start(stage, photo_set, tmp_path, init).stage, torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        early, again, late = (stage("loss", x, Draws(0, 0, torch.arange(1)), at)[0] for at in (0.0, 0.0, 1.0))
        _, terms = stage("loss", x, Draws(0, 0, torch.arange(1)), 1.0)
    assert early == again
    whole = stage.rate_weight(Draws(0, 0, torch.arange(1)).integers(64), 1.0)
    growth = (1 - CONFIG.relaxed_rate) * whole * (terms["bpp_y"] + terms["bpp_z"])
    assert float(late - early) == pytest.approx(float(growth), rel=1e-3)


@pytest.mark.parametrize(
    "stage, setting, weighed",
    [
        ("tokenizer", "commitment_weight", ["commitment"]),
        ("joint", "index_weight", ["index_bits", "masked_bits"]),
        ("refit", "index_weight", ["index_bits", "masked_bits"]),
        ("transforms", "index_weight", ["masked_bits"]),
    ],
)
def test_what_stands_beside_rate_and_distortion_counts_by_its_weight(
    stage, setting, weighed, photo_set, init, tmp_path
):
    losses = []
    for weight in (0.0, 2.0):
        stage_of = start(stage, photo_set, tmp_path / str(weight), init, replace(CONFIG, **{setting: weight})).stage
        with torch.no_grad():
            loss, terms = stage_of.eval()("loss", photo_set.crops(64, draws_of_a_step()), draws_of_a_step(), 1.0)
        losses.append(float(loss))
    added = 2 * sum(float(terms[name]) for name in weighed)
    assert added > 0.01 and losses[1] - losses[0] == pytest.approx(added, rel=1e-3)


def test_bits_of_sent_indices_teach_the_prior_and_leave_y_c_alone(photo_set, init, tmp_path, monkeypatch):
    monkeypatch.setattr("hybridflow.training.stages.masked_cross_entropy", lambda logits, *_: 0 * logits.sum())
    gradients = []
    for weight in (0.0, 2.0):
        stage = start("joint", photo_set, tmp_path / str(weight), init, replace(CONFIG, index_weight=weight)).stage
        stage("loss", photo_set.crops(64, draws_of_a_step()), draws_of_a_step(), 1.0)[0].backward()
        parts = stage.model.continuous, stage.model.index_prior
        gradients.append([torch.cat([p.grad.flatten() for p in part.parameters()]) for part in parts])
    (y_c, prior), (y_c_weighed, prior_weighed) = gradients
    torch.testing.assert_close(y_c_weighed, y_c)
    assert not prior.any() and prior_weighed.any()


def test_compiled_parts_train_as_others_do(photo_set, init, tmp_path, monkeypatch):
    """By the backend that traces and compiles nothing: what compilers make of it is theirs."""
    compile_part = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: compile_part(part, backend="eager"))
    losses = []
    for compiled in (False, True):
        run = start("tokenizer", photo_set, tmp_path / str(compiled), init, replace(CONFIG, compile=compiled))
        losses.append([run._step()["loss"] for _ in range(2)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_what_is_compiled_is_compiled_for_training_alone(photo_set, init, tmp_path, monkeypatch):
    """Neither what draws by the step's number, which would be another graph each step, nor batches to validate on."""
    compile_part, graphs = torch.nn.Module.compile, []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: compile_part(part, backend=counting))
    torch._dynamo.reset()
    config = replace(CONFIG, compile=True, quantise_from=0.0)
    run = start("tokenizer", photo_set, tmp_path, init, config, watched=torch.rand(3, 3, 64, 64))
    run._step()
    compiled = len(graphs)
    run._validate(None)
    run.step = 1
    run._step()
    assert 0 < compiled == len(graphs)


def test_bits_of_indices_are_logged_as_bits(photo_set, init, tmp_path, monkeypatch):
    x, draws = torch.rand(1, 3, 64, 64), [Draws(0, 0, torch.arange(1)) for _ in range(2)]
    with torch.no_grad():
        loss, terms = start("predictor", photo_set, tmp_path, init).stage("loss", x, draws[0], 0.0)
        total = terms["masked_bits"] + terms["blind_bits"] + terms["index_bits"]
        assert float(loss) == pytest.approx(math.log(2) * float(total), rel=1e-4)
        every = torch.ones(1, 4, 4, dtype=torch.bool)
        monkeypatch.setattr("hybridflow.training.stages.random_mask", lambda *_: every)
        _, terms = start("joint", photo_set, tmp_path, init).stage("loss", x, draws[1], 0.0)
        assert float(terms["bpp_indices"]) == pytest.approx(float(terms["index_bits"]) / 16**2, rel=1e-4)
        _, parts = start("tokenizer", photo_set, tmp_path, init).stage.eval().reconstruct(x)
    assert parts["bpp_indices"].tolist() == pytest.approx([math.log2(SMALL.num_codes) / 16**2])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_configuration_for_every_preset(stage, preset):
    config = load_config(stage, preset, [])
    sections = yaml.safe_load((resources.files("hybridflow.training") / "configs" / f"{preset}.yaml").read_text())
    assert set(sections) == {"all", "plan", *STAGES}
    for key, value in (sections["all"] | sections[stage]).items():
        assert getattr(config, key) == value


def test_settings_are_typed_and_unknown_ones_named(folder, tmp_path, capsys):
    config = load_config("joint", "tiny", ["learning_rate=1e-4", "max_steps=null", "max_minutes=7", "compile=true"])
    assert (config.batch, config.crop, config.learning_rate, config.max_steps) == (8, 192, 1e-4, None)
    assert config.max_minutes == 7 and config.compile is True
    impossible = ["bacth=4", "batch=four", "batch=1.5", "batch=0", "batch", "batch=[", "crop=100", "clip=0", "bf16=1"]
    impossible += ["compile=yes!", "relaxed_until=1.5", "seed=true", "patience=0"]
    impossible += ["learning_rate=.inf", "learning_rate=.nan"]
    for setting in [*impossible, "max_steps=null"]:
        with pytest.raises(TrainingError, match=setting.partition("=")[0]) as caught:
            load_config("joint", "tiny", [setting])
        assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match="patience wants an integer or null"):
        load_config("joint", "tiny", ["patience=2.5"])
    arguments = ["train", "tokenizer", "--data", str(folder), "--out", str(tmp_path / "run"), "--set", "bacth=4"]
    assert main(arguments) != 0
    assert "bacth" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_command_trains_resumes_and_says_where_photos_are_missing(folder, tmp_path, capsys):
    data = ["--data", str(folder)]
    common = ["train", "continuous", *data, "--out", str(tmp_path / "run"), "--set", "batch=1", "crop=64"]
    assert main([*common, "--max-steps", "1"]) == 0
    assert "2 steps" not in capsys.readouterr().out
    assert main([*common, "--max-steps", "2"]) != 0
    assert "--resume" in capsys.readouterr().err
    assert main([*common, "--max-steps", "2", "--resume"]) == 0
    assert "2 steps" in capsys.readouterr().out
    assert main([*common, "max_steps=3", "--max-minutes", "5", "--resume"]) == 0
    assert "3 steps" in capsys.readouterr().out
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 3
    resumed = ["train", "continuous", *data, "--out", str(tmp_path / "run"), "--resume", "--max-steps", "4"]
    assert main([*resumed, "--init", str(tmp_path / "gone.safetensors"), "--set", "seed=7"]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert [config[key] for key in ("batch", "crop", "seed", "max_steps")] == [1, 64, 7, 4]
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    nothing = ["--data", str(tmp_path / "empty"), "--out", str(tmp_path / "none")]
    assert main(["train", "continuous", *nothing]) == 1
    assert "no train photo" in capsys.readouterr().err
    assert main(["train", "joint", *nothing, "--init", str(tmp_path / "nowhere.safetensors")]) == 1
    assert "nowhere.safetensors: name by --init" in capsys.readouterr().err


@pytest.mark.parametrize(
    "out, options, told",
    [
        ("new", ["--init", "INIT"], "predictor needs codebook: name by --init"),
        ("new", ["--init", "WHOLE", "--preset", "base"], "does not fit this preset"),
        ("new", ["--set", "batch=3", "accumulate=2"], "batch=3 cannot be split"),
        ("new", ["--init", "WHOLE", "--set", "mse_weight=1"], "mse_weight is for the baseline stage"),
        ("new", ["--set", "compile=true", "adversarial_weight=1"], "compile does not go with adversarial_weight"),
        ("file", ["--init", "WHOLE"], "cannot write"),
        (os.fsdecode(b"o\xff"), ["--init", "WHOLE"], "is no name in UTF-8: name another folder by --out"),
    ],
)
def test_what_cannot_start_is_told_before_photos_are_read(
    out, options, told, folder, init, tmp_path, monkeypatch, capsys
):
    opened = "hybridflow.training.streaming.open_photos"
    monkeypatch.setattr(opened, lambda *_: pytest.fail("photos were read"))
    (tmp_path / "file").touch()
    rest = {key: value for key, value in load_file(init).items() if part_of(key) != "codebook"}
    save_file(rest, tmp_path / "rest.safetensors")
    files = {"INIT": str(tmp_path / "rest.safetensors"), "WHOLE": str(init)}
    arguments = ["train", "predictor", "--data", str(folder), "--out", str(tmp_path / out)]
    assert main([*arguments, *(files.get(option, option) for option in options)]) == 1
    assert told in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["file", "rest.safetensors"]


# --- photos -----------------------------------------------------------------------------------------------------------


def encoded(image, file_format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def write_shard(path, files):
    with tarfile.open(path, "w") as shard:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            shard.addfile(entry, io.BytesIO(data))


def test_photos_come_from_shards_and_folders_alike(crops, folder, tmp_path):
    write_shard(tmp_path / "shard-0.tar", {"photos/0001.png": encoded(crops[0])})
    write_shard(tmp_path / "shard-1.tar", {"photos/0002.png": encoded(crops[1])})
    (tmp_path / "notes.txt").write_text("not a photo")
    sharded, loose = PhotoSet(tmp_path, "train"), PhotoSet(folder, "train")
    assert len(sharded.photos) == 2
    for one, other in zip(sharded.photos, loose.photos):
        assert one.shape == (3, 80, 96) and one.dtype == torch.uint8 and torch.equal(one, other)


def test_validation_is_kept_apart(crops, tmp_path):
    names = ["0049", "0050", "0051", "100", "photo"]
    sizes = [(0, 0, 60 + number, 60) for number in range(5)]
    write_shard(tmp_path / "s.tar", {f"{n}.png": encoded(crops[0].crop(s)) for n, s in zip(names, sizes)})
    widths = {split: [p.shape[2] for p in PhotoSet(tmp_path, split).photos] for split in ("train", "validation")}
    assert widths == {"train": [60, 62, 64], "validation": [61, 63]}


def test_broken_images_are_named_and_small_ones_left_out(crops, tmp_path):
    whole = encoded(crops[0])
    huge = bytearray(encoded(crops[0], "BMP"))
    huge[18:26] = b"\xff\xff\0\0" * 2  # width and height
    broken = {"cut.png": whole[:500], "text.png": b"hello", "chunk.png": whole.replace(b"IDAT", b"ID\0T", 1)}
    broken["huge.bmp"] = bytes(huge)
    broken["cut.avif"] = encoded(crops[0], "AVIF")[:600]
    files = {"a.png": whole} | broken
    write_shard(tmp_path / "s.tar", files | {"small.png": encoded(crops[0].crop((0, 0, 20, 90)))})
    with pytest.warns(UserWarning, match="skipped 5 broken") as caught:
        photos = PhotoSet(tmp_path, "train", min_side=64).photos
    assert len(photos) == 1
    assert all(name in str(caught[0].message) for name in broken)
    assert str(caught[1].message) == "skipped 1 photos of less than 64 pixels a side: small.png"


def test_small_photos_among_large_ones_never_end_a_stream(tmp_path):
    small, large = ("1.png", np.zeros((8, 8, 3), np.uint8)), ("2.png", np.zeros((64, 64, 3), np.uint8))
    decoded = itertools.chain(itertools.repeat(small, 6000), [large], itertools.repeat(small, 6000), [large])
    photos = _whole_ones(decoded, 64, tmp_path)
    with pytest.warns(UserWarning, match="less than 64 pixels a side are skipped, the first is 1.png") as caught:
        assert next(photos) is large[1] and next(photos) is large[1]
    assert len(caught) == 1


def test_photos_are_opened_as_the_configuration_wants(folder, monkeypatch):
    wanted, cpu = {"transpose": 0.5, "downscale": 1.25, "jitter": 0.1}, torch.device("cpu")
    config, augmentation = replace(CONFIG, **wanted), Augmentation(**wanted)
    assert open_photos(folder, config, cpu).augmentation == augmentation
    with pytest.raises(TrainingError, match="at least 128 pixels"):
        open_photos(folder, replace(config, crop=128), cpu)
    monkeypatch.setattr("hybridflow.training.streaming.StreamedPhotos", lambda folder, **settings: settings)
    streamed = open_photos(folder, replace(config, streaming=True), cpu)
    assert streamed == {"device": cpu, "min_side": 64, "augmentation": augmentation}


def test_a_folder_may_hold_what_cannot_be_read(crops, tmp_path):
    crops[0].save(tmp_path / "1.png")
    (tmp_path / "2.png").mkdir()
    (tmp_path / "3.png").symlink_to(tmp_path / "gone.png")
    with pytest.warns(UserWarning, match="skipped 1 broken images: 3.png"):
        assert len(PhotoSet(tmp_path, "train").photos) == 1


def test_what_lies_beside_the_photos_is_left_alone(crops, tmp_path):
    files = {"a.png": encoded(crops[0]), "a.json": b"{}", "._a.png": b"of a Mac", "b.pdf": b"%PDF"}
    write_shard(tmp_path / "s.tar", files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(PhotoSet(tmp_path).photos) == 1


def test_photos_are_trained_on_as_they_are_encoded(tmp_path):
    deep = np.linspace(20000, 40000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (photo,) = PhotoSet(tmp_path).photos
    assert photo[0].float().mean() == pytest.approx(30000 / 257, abs=0.5)


def test_only_so_many_photos_are_decoded_as_are_wanted(crops, tmp_path, monkeypatch):
    write_shard(tmp_path / "s.tar", {f"{50 * number}.png": encoded(crops[0]) for number in range(200)})
    decoded = []
    monkeypatch.setattr(
        "hybridflow.training.data.decode_photo", lambda named: decoded.append(named[0]) or decode_photo(named)
    )
    assert len(validation_crops(tmp_path, 3, 64)) == 3 and len(decoded) < 100


def test_a_folder_without_photos(tmp_path):
    with pytest.raises(TrainingError, match="no validation photo .*multiple of 50"):
        PhotoSet(tmp_path, "validation")


def test_damaged_shards_and_missing_folders_are_named(crops, tmp_path):
    write_shard(tmp_path / "s.tar", {"a.png": encoded(crops[0])})
    with open(tmp_path / "s.tar", "r+b") as shard:
        shard.truncate(2000)
    with pytest.raises(TrainingError, match="s.tar is damaged"):
        PhotoSet(tmp_path)
    with pytest.raises(TrainingError, match="nowhere is not a folder"):
        PhotoSet(tmp_path / "nowhere")


def test_crops_are_pieces_of_the_photos(photo_set):
    batch = photo_set.crops(64, Draws(0, 0, torch.arange(32)))
    assert batch.shape == (32, 3, 64, 64) and batch.min() >= 0 and batch.max() <= 1
    known = {
        photo[:, top : top + 64, left : left + 64].contiguous().numpy().tobytes()
        for photo in photo_set.photos
        for top in range(photo.shape[1] - 63)
        for left in range(photo.shape[2] - 63)
    }
    straight = [(255 * crop).round().byte().numpy().tobytes() in known for crop in batch]
    mirrored = [(255 * crop).round().byte().flip(2).contiguous().numpy().tobytes() in known for crop in batch]
    assert all(a != b for a, b in zip(straight, mirrored)) and 4 < sum(mirrored) < 28
    halves = [photo_set.crops(64, Draws(0, 0, torch.arange(a, a + 16))) for a in (0, 16)]
    assert torch.equal(torch.cat(halves), batch)
    assert not torch.equal(photo_set.crops(64, Draws(0, 1, torch.arange(32, 64))), batch)


def test_photos_are_streamed_from_shards(crops, tmp_path):
    files = {f"photos/{number:04}.png": encoded(crops[number % 2]) for number in range(48, 54)}
    files["photos/0007.png"] = b"broken"
    write_shard(tmp_path / "shard.tar", files)
    stream = StreamedPhotos(tmp_path, min_side=64, workers=0, shuffled=4)
    with pytest.warns(UserWarning, match="0007.png"):
        batches = [stream.crops(64, Draws(0, step, torch.arange(8))) for step in range(8)]
    assert all(batch.shape == (8, 3, 64, 64) for batch in batches)
    with pytest.raises(TrainingError, match="no whole photo"):
        StreamedPhotos(tmp_path, min_side=1000, workers=0).crops(64, Draws(0, 0, torch.arange(1)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="streaming"):
        StreamedPhotos(tmp_path / "empty")
    write_shard(tmp_path / "empty" / "held_out.tar", {"50.png": encoded(crops[0])})
    (tmp_path / "empty" / "damaged.tar").write_bytes(b"no shard")
    with pytest.raises(TrainingError, match="no shard holds a photo"):
        StreamedPhotos(tmp_path / "empty", workers=0)


def test_every_photo_of_a_shard_is_streamed_and_its_workers_end_with_it(tmp_path):
    """Dots in names are no suffix, and a damaged shard gives what lies before the damage."""
    greys = {f"2024.05.{number:02}.png": Image.new("RGB", (64, 64), (number,) * 3) for number in range(1, 9)}
    write_shard(tmp_path / "shard.tar", {name: encoded(image) for name, image in greys.items()})
    (tmp_path / "damaged.tar").write_bytes(b"no shard")
    with pytest.warns(UserWarning, match="damaged.tar is damaged"):
        stream = StreamedPhotos(tmp_path, workers=0, shuffled=1)
        batch = stream.crops(64, Draws(0, 0, torch.arange(64)))
    assert set((255 * batch[:, 0, 0, 0]).round().int().tolist()) == set(range(1, 9))
    photos = weakref.ref(stream._photos)
    gc.disable()
    del stream
    gc.enable()
    assert photos() is None


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_last_photos_to_the_run(crops, tmp_path, sent):
    """Ctrl-C, or the end of a batch job, reaches the processes that decode too."""
    write_shard(tmp_path / "shard.tar", {f"{number}.png": encoded(crops[0]) for number in range(1, 9)})
    stream = StreamedPhotos(tmp_path, min_side=64, workers=1, shuffled=1)
    for step in range(4):
        assert len(stream.crops(64, Draws(0, step, torch.arange(8)))) == 8
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, sent)


def test_down_scaling_averages_and_transposing_transposes(folder):
    photos = PhotoSet(folder, "train")
    ramp = torch.arange(128.0).expand(128, 128)
    packed = PackedPhotos([torch.stack([ramp, ramp.T, ramp], -1).byte().numpy()])
    chosen, draws = torch.zeros(64, dtype=torch.int64), Draws(0, 0, torch.arange(64))
    for crop in 255 * packed.crop(chosen, 64, draws, Augmentation(transpose=0.5, downscale=2.0)):
        across, down = crop[0].diff(dim=1).mean(), crop[1].diff(dim=0).mean()
        steps = torch.stack([across, down]) if across.abs() > 0.5 else torch.stack([crop[0].diff(dim=0).mean()])
        assert ((steps.abs() > 0.98) & (steps.abs() < 2.02)).all()
    transposed = packed.crop(chosen, 64, draws, Augmentation(transpose=1.0))
    plain = packed.crop(chosen, 64, Draws(0, 0, torch.arange(64)), Augmentation())
    assert (transposed[:, 0].diff(dim=2) == 0).all() and (plain[:, 0].diff(dim=1) == 0).all()
    assert photos.crops(64, draws).is_contiguous(memory_format=torch.channels_last)


def test_colour_jitter_is_by_sample_and_bounded():
    x, draws = torch.rand(16, 3, 8, 8), Draws(0, 0, torch.arange(16))
    changed = jitter_colour(x, 0.2, draws)
    assert changed.min() >= 0 and changed.max() <= 1 and (changed - x).abs().max() < 0.6
    assert len({round(float(d), 6) for d in (changed - x).mean((1, 2, 3))}) == 16
    torch.testing.assert_close(jitter_colour(x, 0.0, draws), x)


def test_centre_crops_are_the_same_every_time(photo_set):
    crops = photo_set.centre_crops(2, 64)
    assert torch.equal(photo_set.centre_crops(1, 64), crops[:1])
    assert torch.equal(crops[0], photo_set.photos[0][:, 8:72, 16:80] / 255)


def test_large_photos_are_chosen_by_their_area_to_its_power(tmp_path):
    for name, side in (("1", 64), ("2", 128)):
        Image.new("RGB", (side, side), (side,) * 3).save(tmp_path / f"{name}.png")
    crops = PhotoSet(tmp_path).crops(8, Draws(0, 0, torch.arange(4000)))
    share = (crops[:, 0, 0, 0] > 0.4).float().mean()
    assert float(share) == pytest.approx(4**AREA_POWER / (1 + 4**AREA_POWER), abs=0.015)


def test_crops_reach_every_edge():
    rows, columns = torch.meshgrid(torch.arange(10), torch.arange(14), indexing="ij")
    packed = PackedPhotos([torch.stack([rows, columns, columns], -1).byte().numpy()])
    crops = packed.crop(torch.zeros(500, dtype=torch.int64), 8, Draws(0, 0, torch.arange(500)), Augmentation()) * 255
    assert set(crops[:, 0].amin((1, 2)).round().int().tolist()) == {0, 1, 2}
    assert set(crops[:, 1].amin((1, 2)).round().int().tolist()) == set(range(7))


def test_half_of_the_crops_are_not_down_scaled():
    ramp = torch.arange(128).expand(128, 128)
    packed = PackedPhotos([torch.stack([ramp] * 3, -1).byte().numpy()])
    augmentation = Augmentation(downscale=1.5)
    crops = 255 * packed.crop(torch.zeros(200, dtype=torch.int64), 32, Draws(0, 0, torch.arange(200)), augmentation)
    steps = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]).abs() / 31
    assert 70 < (steps < 1.001).sum() < 130 and 1.4 < steps.max() < 1.55


def test_jitter_changes_each_image_by_its_own_three_numbers():
    x = torch.tensor([[0.4, 0.6, 0.6, 0.5], [0.4, 0.6, 0.4, 0.5], [0.4, 0.6, 0.5, 0.5]])[None, :, None]
    changed = jitter_colour(x.expand(64, -1, -1, -1), 0.2, Draws(0, 0, torch.arange(64)))
    grey = (changed[:, 0, 0, 1] - changed[:, 0, 0, 0]) / 0.2
    colour = (changed[:, 0, 0, 2] - changed[:, 1, 0, 2]) / 0.2
    saturation, brightness = colour / grey, changed.mean((1, 2, 3)) / 0.5
    contrast = grey / brightness
    for numbers in (saturation, brightness, contrast):
        assert 0.8 < numbers.min() < 0.85 and 1.15 < numbers.max() < 1.2
    alone = jitter_colour(x, 0.2, Draws(0, 0, torch.arange(5, 6)))
    torch.testing.assert_close(alone[0], changed[5])


def test_a_photo_of_just_the_smallest_side_is_taken(tmp_path):
    Image.new("RGB", (64, 80)).save(tmp_path / "1.png")
    assert len(PhotoSet(tmp_path, min_side=64).photos) == 1


def test_half_of_the_crops_are_mirrored():
    packed = PackedPhotos([torch.arange(10)[None, :, None].expand(10, 10, 3).byte().numpy()])
    crops = packed.crop(torch.zeros(500, dtype=torch.int64), 8, Draws(0, 0, torch.arange(500)), Augmentation())
    assert 200 < (crops[:, 0, 0, 0] > crops[:, 0, 0, 7]).sum() < 300
