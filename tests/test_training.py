"""Training: every stage moves exactly its parts, learns, and goes on after a kill as if nothing had happened."""

import io
import json
import tarfile

import pytest
import torch
from conftest import SMALL, random_model
from PIL import Image
from safetensors.torch import load_file, save_file

from hybridflow.ablation import Ablations
from hybridflow.cli import main
from hybridflow.training.config import TrainConfig
from hybridflow.training.data import PhotoSet
from hybridflow.training.loop import Run
from hybridflow.training.stages import STAGES, Stage

CONFIG = TrainConfig(batch=2, crop=64, max_steps=3, warmup_steps=1)
PARTS = {
    "tokenizer": {"codebook_encoder", "codebook", "pixel_decoder"},
    "continuous": {"continuous", "light_synthesis"},
    "predictor": {"predictor", "blind_predictor", "index_prior"},
    "correction": {"correction"},
    "joint": {"continuous", "correction", "pixel_decoder", "predictor", "index_prior"},
    "refit": {"correction", "pixel_decoder", "predictor", "index_prior"},
}


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
def init(tmp_path_factory):
    """Weights of every part, for a stage to start from."""
    model = random_model(0)
    model.codebook.started.fill_(True)
    weights = model.state_dict() | Ablations(SMALL).state_dict()
    path = tmp_path_factory.mktemp("init") / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return path


def start(stage, photo_set, out, init=None, config=CONFIG, resume=False):
    return Run(stage, SMALL, config, photo_set, out, init, resume, "cpu")


def test_joint_training_keeps_the_streams_alone_for_ablations(photo_set, init, tmp_path):
    weights = {key: v for key, v in load_file(init).items() if not key.startswith(("codebook_decoder", "continuous_"))}
    save_file(weights, tmp_path / "correction.safetensors")
    start("joint", photo_set, tmp_path, tmp_path / "correction.safetensors").train()
    after = load_file(tmp_path / "weights.safetensors")
    for kept, source in (("codebook_decoder.", "pixel_decoder."), ("continuous_alone.", "continuous.")):
        for key, value in weights.items():
            if key.startswith(source):
                assert torch.equal(after[key.replace(source, kept, 1)], value)


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_changes_exactly_its_parts(stage, photo_set, init, tmp_path):
    run = start(stage, photo_set, tmp_path, init)
    run.log_every = 1
    run.train()
    before, after = load_file(init), load_file(tmp_path / "weights.safetensors")
    assert set(before) == set(after)
    changed = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert PARTS[stage] == set(STAGES[stage].trained)
    assert changed == PARTS[stage]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3] and log[-1]["skipped"] == 0
    assert all(record["loss"] > 0 for record in log)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["stage"] == stage and config["batch"] == 2 and config["preset"]["num_codes"] == SMALL.num_codes


@pytest.mark.parametrize("stage", STAGES)
def test_every_weight_that_a_stage_trains_gets_a_gradient(stage, photo_set, init, tmp_path):
    run = start(stage, photo_set, tmp_path, init)
    run._step()
    without = [name for name, p in run._trained() if p.grad is None and not name.endswith("quantiles")]
    assert without == []


def test_frozen_parts_stay_in_eval_mode(photo_set, init, tmp_path):
    stage = start("predictor", photo_set, tmp_path, init).stage
    assert stage.model.predictor.training and stage.model.index_prior.training
    assert not stage.model.continuous.training and not stage.model.codebook.training


def test_a_stage_with_a_misspelt_part_is_refused(photo_set):
    class Misspelt(Stage):
        trained = ("pixel_decoder", "predictr")

    with pytest.raises(AttributeError, match="predictr"):
        Misspelt(random_model(0), Ablations(SMALL), CONFIG, photo_set, torch.Generator())


def test_the_tokenizer_overfits_two_crops(crops, tmp_path):
    for number, crop in enumerate(crops, 1):
        crop.crop((0, 0, 64, 64)).save(tmp_path / f"{number}.png")
    config = TrainConfig(batch=2, crop=64, max_steps=160, warmup_steps=5, learning_rate=5e-3, quantise_from=0.2)
    run = start("tokenizer", PhotoSet(tmp_path, "train"), tmp_path, config=config)
    run.log_every = 10
    run.train()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.4 * losses[0]
    assert run.stage.model.codebook.started


class Killed(Exception):
    pass


@pytest.mark.parametrize("stage", ["tokenizer", "joint"])
def test_a_killed_run_goes_on_bit_for_bit(stage, photo_set, init, tmp_path):
    config = TrainConfig(batch=2, crop=64, max_steps=6, warmup_steps=2, save_minutes=0)
    start(stage, photo_set, tmp_path / "straight", init, config).train()

    run = start(stage, photo_set, tmp_path / "killed", init, config)
    step = run._step

    def step_until_killed():
        if run.step == 3:
            raise Killed
        return step()

    run._step = step_until_killed
    with pytest.raises(Killed):
        run.train()
    resumed = start(stage, photo_set, tmp_path / "killed", config=config, resume=True)
    assert resumed.step == 3
    resumed.train()

    straight, killed = (load_file(tmp_path / name / "weights.safetensors") for name in ("straight", "killed"))
    assert set(straight) == set(killed)
    assert [key for key in straight if not torch.equal(straight[key], killed[key])] == []
    assert not list(tmp_path.rglob("*.partial"))


def test_averages_follow_the_weights(photo_set, init, tmp_path):
    run = start("correction", photo_set, tmp_path, init)
    name, parameter = next(run._trained())
    first = parameter.detach().clone()
    run._step()
    decay = 1 / 10  # at step 0
    torch.testing.assert_close(run.average[name], decay * first + (1 - decay) * parameter.detach())


def test_a_step_without_finite_gradient_is_skipped(photo_set, init, tmp_path):
    run = start("correction", photo_set, tmp_path, init)
    before = {name: p.detach().clone() for name, p in run._trained()}
    loss = run.stage.loss
    run.stage.loss = lambda x, progress: (loss(x, progress)[0] * float("nan"), {})
    run._step()
    assert all(torch.equal(p, before[name]) for name, p in run._trained())


def test_lambda_starts_relaxed(photo_set):
    stage = STAGES["continuous"](random_model(0), Ablations(SMALL), CONFIG, photo_set, torch.Generator())
    quality = torch.tensor([0, 63])
    whole = stage.rate_weight(quality, 1.0)
    torch.testing.assert_close(stage.rate_weight(quality, 0.0), CONFIG.relaxed_rate * whole)
    torch.testing.assert_close(stage.rate_weight(quality, CONFIG.relaxed_until), whole)


def test_settings_are_typed_and_unknown_ones_named(folder, tmp_path, capsys):
    config = TrainConfig().override(["batch=4", "learning_rate=1e-4", "max_steps=7"])
    assert (config.batch, config.learning_rate, config.max_steps) == (4, 1e-4, 7)
    for setting, word in (("bacth=4", "bacth"), ("batch=four", "batch"), ("batch=1.5", "batch")):
        with pytest.raises(ValueError, match=word):
            TrainConfig().override([setting])
    arguments = ["train", "tokenizer", "--data", str(folder), "--out", str(tmp_path / "run"), "--set", "bacth=4"]
    assert main(arguments) != 0
    assert "bacth" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_command_trains_resumes_and_says_where_photos_are_missing(folder, tmp_path, capsys):
    data = ["--data", str(folder)]
    common = ["train", "correction", *data, "--out", str(tmp_path / "run"), "--set", "batch=1", "crop=64"]
    assert main([*common, "--max-steps", "1"]) == 0
    assert main([*common, "--max-steps", "2", "--resume"]) == 0
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 2
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    assert main(["train", "correction", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "none")]) != 0
    assert "no train photo" in capsys.readouterr().err


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
    files = {"a.png": whole} | broken
    write_shard(tmp_path / "s.tar", files | {"small.png": encoded(crops[0].crop((0, 0, 20, 90)))})
    with pytest.warns(UserWarning, match="skipped 4 broken") as caught:
        photos = PhotoSet(tmp_path, "train", min_side=64).photos
    assert len(photos) == 1
    assert all(name in str(caught[0].message) for name in broken)


def test_a_folder_without_photos(tmp_path):
    with pytest.raises(FileNotFoundError, match="no validation photo"):
        PhotoSet(tmp_path, "validation")


def test_crops_are_pieces_of_the_photos(photo_set):
    generator = torch.Generator().manual_seed(0)
    batch = photo_set.crops(32, 64, generator)
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
    again = photo_set.crops(32, 64, torch.Generator().manual_seed(0))
    assert torch.equal(again, batch) and not torch.equal(photo_set.crops(32, 64, generator), batch)


def test_centre_crops_are_the_same_every_time(photo_set):
    crops = photo_set.centre_crops(2, 64)
    assert torch.equal(crops[0], photo_set.photos[0][:, 8:72, 16:80] / 255)
