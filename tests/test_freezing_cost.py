"""What freezing costs and what a file decides: on a small model that was frozen from floats kept in a file."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import SMALL, random_model
from eval.freezing import POINTS, batch_alike, bytes_at_points, floats_of, integers, main, reads_alike, threads
from eval.photo import Photo
from hybridflow.ablation import Ablations
from hybridflow.checkpoint import load_release, save_ablation, save_release
from hybridflow.codec import Codec
from hybridflow.errors import CheckpointError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A release, and its ablation file."""
    folder = tmp_path_factory.mktemp("frozen")
    model = random_model(0).half().float()  # as it will be loaded
    save_release(folder / "small.safetensors", model, {})
    save_ablation(folder / "small-ablation.safetensors", model, Ablations(SMALL), ["codebook_decoder"])
    return folder / "small.safetensors", folder / "small-ablation.safetensors"


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    for photo, left in zip(photos, (200, 300, 400)):
        with Image.open(photo) as image:
            image.crop((left, 200, left + 96, 264)).save(folder / photo.name)
    return folder


@pytest.fixture(scope="module")
def crops(files, folder) -> list[Photo]:
    codec = Codec(load_release(files[0])[0], "small")
    return [Photo(codec, None, path) for path in sorted(folder.iterdir())]


def test_the_floats_are_those_before_freezing_and_estimates_read_them(files, crops):
    floats = floats_of(crops[0].model, files[1])
    assert not floats.continuous.exact.frozen and crops[0].model.continuous.exact.frozen
    gaussian = load_release(files[0])[0].eval()  # as the floats are
    gaussian.update(force=True)
    mine, frozen = (crops[0].estimated_bytes(31, "full", model) for model in (floats, gaussian))
    assert mine != frozen and mine == pytest.approx(frozen, rel=0.05)


def test_worse_floats_would_have_cost_more(files, crops):
    floats = floats_of(crops[0].model, files[1])
    torch.nn.init.normal_(floats.index_prior.out[-1].bias, std=10)
    row = bytes_at_points(crops, floats)[POINTS.index((31, "full"))]
    assert row["change_percent"] < -20 and row["frozen"] == sum(len(crop.file(31, "full")[0]) for crop in crops)


def test_a_reading_that_differs_is_seen(crops, monkeypatch):
    assert reads_alike(crops[0], lambda: threads(2))
    written = crops[0].file(*POINTS[0])[1]
    monkeypatch.setattr(crops[0], "read", lambda *point: written._replace(y=written.y + 1))
    assert not reads_alike(crops[0], lambda: threads(2))


def test_distributions_of_a_batch_are_those_of_its_images(crops, monkeypatch):
    assert batch_alike(crops) == len(crops)

    def wrong_in_batches(model, coded, quality):
        for values in integers(model, coded, quality):
            yield values + (torch.arange(len(coded)).view(-1, *[1] * (values.dim() - 1)) == 1)

    monkeypatch.setattr("eval.freezing.integers", wrong_in_batches)
    assert batch_alike(crops) == len(crops) - 1


def test_the_command_writes_both_tables(files, folder, tmp_path, capsys):
    out = tmp_path / "new" / "freezing.json"
    arguments = ["--data", str(folder), "--checkpoint", str(files[0]), "--ablations", str(files[1]), "-o", str(out)]
    assert main(arguments) == 0
    tables = json.loads(out.read_text())["tables"]
    assert [row["point"] for row in tables["bytes"]] == [f"{quality}:{schedule}" for quality, schedule in POINTS]
    assert all(row["same"] == row["images"] == 3 for row in tables["readings"])
    assert "| 2 threads | 3 | 3 |" in capsys.readouterr().out


def test_floats_of_another_model_are_refused(files, crops, tmp_path):
    floats = load_file(files[1])
    foreign, smaller = tmp_path / "foreign.safetensors", tmp_path / "smaller.safetensors"
    save_file(floats, foreign, {"model_id": "000000"})
    save_file({key: value[:1].clone() for key, value in floats.items() if value.dim()}, smaller)
    for path, words in ((foreign, "is for model 000000"), (smaller, "another preset")):
        with pytest.raises(CheckpointError, match=words):
            floats_of(crops[0].model, path)


def test_a_file_without_floats_is_one_error(files, folder, tmp_path, capsys):
    arguments = ["--data", str(folder), "--checkpoint", str(files[0]), "--ablations", "no.safetensors"]
    assert main([*arguments, "-o", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err.count("error:") == 1
