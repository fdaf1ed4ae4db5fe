"""Export: what a run's weights become, and the perceptual decoder in a file of its own."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import hybridflow
from conftest import SMALL
from hybridflow.cli import main
from hybridflow.masking import UNIFORM_SCHEDULES
from hybridflow.training.config import TrainConfig
from hybridflow.training.data import PhotoSet
from hybridflow.training.export import _pareto_front, choose_operating_points
from hybridflow.training.loop import Run, start_processes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The plan of `tiny`, a smaller model, little to measure on."""
    monkeypatch.setattr("hybridflow.model.PRESETS", {"tiny": SMALL})
    monkeypatch.setattr("hybridflow.training.export.PROBED_QUALITIES", range(0, 64, 63))


def export(weights, folder, out):
    assert main(["export", str(weights), "--data", str(folder), "--out", str(out)]) == 0
    return sorted(path.name for path in out.iterdir())


def second_decoder(weights):
    """Weights of a perceptual decoder: those of the first."""
    first = {key: value for key, value in weights.items() if key.startswith(("pixel_decoder.", "correction."))}
    return {f"perceptual.{key}": value.clone() for key, value in first.items()}


def test_of_points_those_are_kept_that_none_beats_by_their_rate():
    points = [(0.04, 0.2, "b"), (0.01, 0.5, "a"), (0.03, 0.6, "worse"), (0.05, 0.2, "no better"), (0.06, 0.1, "c")]
    assert _pareto_front(points) == ["a", "b", "c"]


def test_operating_points_lie_between_those_that_were_measured(monkeypatch):
    """Of a cheap schedule and a better one, by their qualities; a third is never worth its bytes."""
    monkeypatch.setattr("hybridflow.training.export.load_lpips", lambda: None)
    monkeypatch.setattr("hybridflow.training.export.plain_distortion", lambda x, decoded, lpips: decoded)
    better, *_, cheap = UNIFORM_SCHEDULES
    costs = {schedule: (9000, 9.0) for schedule in UNIFORM_SCHEDULES} | {cheap: (1000, 8.0), better: (3000, 6.0)}
    model = SimpleNamespace(
        probability=lambda: None,
        analyse=lambda crop: SimpleNamespace(image=crop),
        write=lambda analysed, quality, schedule, probability: (bytes(costs[schedule][0] + 10 * quality), schedule),
        synthesise=lambda schedule, quality: costs[schedule][1] - quality / 63,
    )
    photos = SimpleNamespace(centre_crops=lambda count, side: torch.zeros(count, 1))
    expected = [(quality, schedule) for schedule in (cheap, better) for quality in range(64)]
    assert choose_operating_points(model, photos, 2) == expected


def test_a_run_of_the_perceptual_stage_exports_a_second_decoder(every_part, two_splits, tmp_path):
    config = TrainConfig(batch=1, crop=64, max_steps=1, adversarial_weight=0.5, adversarial_from=0)
    arguments = PhotoSet(two_splits), tmp_path / "run", every_part, False, start_processes("cpu")
    Run("perceptual", SMALL, config, *arguments).train()

    assert export(every_part, two_splits, tmp_path / "before") == ["tiny-ablation.safetensors", "tiny.safetensors"]
    after = ["tiny-ablation.safetensors", "tiny-perceptual.safetensors", "tiny.safetensors"]
    assert export(tmp_path / "run" / "weights.safetensors", two_splits, tmp_path / "after") == after

    released = [load_file(tmp_path / name / "tiny.safetensors") for name in ("before", "after")]
    assert set(released[0]) == set(released[1])
    assert all(torch.equal(value, released[1][key]) for key, value in released[0].items())
    perceptual = load_file(tmp_path / "after" / "tiny-perceptual.safetensors")
    assert {key.split(".")[1] for key in perceptual} == {"pixel_decoder", "correction"}
    assert {value.dtype for value in perceptual.values()} == {torch.float16}

    codec = hybridflow.load(tmp_path / "before" / "tiny.safetensors")
    second = hybridflow.load(tmp_path / "after" / "tiny.safetensors", decoder="perceptual")
    with Image.open(two_splits / "50.png") as photo:
        data = codec.encode(photo)
    assert second.decode(data).size == (256, 256) and second.decode(data) != codec.decode(data)


def test_a_checkpoint_that_is_too_large_is_refused(every_part, two_splits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hybridflow.training.export.LARGEST_RELEASE", 1000)
    assert main(["export", str(every_part), "--data", str(two_splits), "--out", str(tmp_path / "out")]) == 1
    assert "more than 1,000" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_where_nothing_can_be_written_is_told_before_the_work(every_part, two_splits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hybridflow.training.export.held_out_photos", lambda _: pytest.fail("photos were read"))
    arguments = ["export", str(every_part), "--data", str(two_splits), "--out"]
    (tmp_path / "file").touch()
    assert main([*arguments, str(tmp_path / "file" / "release")]) == 1
    assert "cannot write" in capsys.readouterr().err
    for name in ("a/b", ".."):
        assert main([*arguments, str(tmp_path), "--name", name]) == 1
        assert f"{name!r} is no name of a file: give the folder by --out" in capsys.readouterr().err


def test_weights_that_lack_a_part_are_not_released(every_part, two_splits, tmp_path, capsys):
    weights = {key: value for key, value in load_file(every_part).items() if not key.startswith("predictor.")}
    save_file(weights, tmp_path / "some.safetensors")
    arguments = ["--data", str(two_splits), "--out", str(tmp_path / "out")]
    assert main(["export", str(tmp_path / "some.safetensors"), *arguments]) == 1
    assert "lacks predictor:" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_baselines_that_the_weights_lack_are_not_lost_in_silence(every_part, two_splits, tmp_path):
    export(every_part, two_splits, tmp_path / "out")
    rest = {key: value for key, value in load_file(every_part).items() if not key.startswith("blind_predictor.")}
    save_file(rest, tmp_path / "rest.safetensors")
    arguments = ["--data", str(two_splits), "--out", str(tmp_path / "out"), "--force"]
    with pytest.warns(UserWarning, match="tiny-ablation.safetensors held blind_predictor, which .*rest.safetensors"):
        assert main(["export", str(tmp_path / "rest.safetensors"), *arguments]) == 0


def test_a_perceptual_decoder_goes_with_the_bits_that_it_decodes(every_part, two_splits, tmp_path):
    out, weights = tmp_path / "out", load_file(every_part)
    save_file(weights | second_decoder(weights), tmp_path / "both.safetensors")
    arguments = ["--data", str(two_splits), "--out", str(out), "--force"]
    assert main(["export", str(tmp_path / "both.safetensors"), *arguments]) == 0
    assert main(["export", str(every_part), *arguments]) == 0  # of the same bits
    assert (out / "tiny-perceptual.safetensors").exists()

    weights["codebook.codewords"] = weights["codebook.codewords"] + 1
    save_file(weights, tmp_path / "others.safetensors")
    with pytest.warns(UserWarning, match="train perceptual anew"):
        assert main(["export", str(tmp_path / "others.safetensors"), *arguments]) == 0
    assert not (out / "tiny-perceptual.safetensors").exists()
    hybridflow.load(out / "tiny.safetensors")


def test_a_perceptual_decoder_of_another_model_stays_without_force(every_part, two_splits, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    save_file({"perceptual.weight": torch.zeros(1)}, out / "tiny-perceptual.safetensors", {"model_id": "000000"})
    assert main(["export", str(every_part), "--data", str(two_splits), "--out", str(out)]) == 1
    assert "--force" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["tiny-perceptual.safetensors"]


@pytest.mark.parametrize("command", ["export", "freeze", "split", "average"])
def test_nothing_is_replaced_without_force(command, every_part, two_splits, tmp_path, capsys):
    one_file = command in ("freeze", "average")
    out = tmp_path / "written.safetensors" if one_file else tmp_path / "out"
    takes = {"split": ["--parts", "codebook", "predictor"], "average": []}
    arguments = [command, str(every_part), "--out", str(out), *takes.get(command, ["--data", str(two_splits)])]
    assert main(arguments) == 0
    files = [out] if one_file else sorted(out.iterdir())
    for file in files[1:]:
        file.unlink()
    files[0].write_bytes(b"precious")
    assert main(arguments) == 1 and "--force" in capsys.readouterr().err
    assert files[0].read_bytes() == b"precious" and not any(file.exists() for file in files[1:])
    assert main([*arguments, "--force"]) == 0 and all(file.stat().st_size > 1000 for file in files)


def test_a_folder_of_parts_is_exported_too(every_part, two_splits, tmp_path):
    weights = load_file(every_part)
    (tmp_path / "parts").mkdir()
    for part in {key.partition(".")[0] for key in weights} - {"blind_predictor"}:
        tensors = {key: value for key, value in weights.items() if key.startswith(part + ".")}
        save_file(tensors, tmp_path / "parts" / f"{part}.safetensors")
    save_file(second_decoder(weights), tmp_path / "parts" / "perceptual.safetensors")
    assert "tiny-perceptual.safetensors" in export(tmp_path / "parts", two_splits, tmp_path / "out")
    beside = {key.partition(".")[0] for key in load_file(tmp_path / "out" / "tiny-ablation.safetensors")}
    assert "codebook_decoder" in beside and "blind_predictor" not in beside  # was never trained
