"""The mean of several runs' weights: what has a mean, what has to be the same, and what is refused."""

import pytest
import torch
from conftest import SMALL, random_model
from safetensors.torch import load_file, save_file

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import load_release, model_id, save_ablation, save_release
from hybridflow.cli import main
from hybridflow.errors import TrainingError
from hybridflow.model import HybridFlow
from hybridflow.training.average import average_weights

MOVED = "pixel_decoder.head.5.weight"


def changed(weights, path, **changes):
    """Weights of which some tensors were moved by a number."""
    tensors = load_file(weights)
    save_file(tensors | {name: tensors[name] + by for name, by in changes.items()}, path)
    return path


@pytest.mark.parametrize("shares, expected", [(None, 1.0), ([0.25, 0.75], 1.5), ([-0.5, 1.5], 3.0)])
def test_a_mean_lies_where_its_shares_say(shares, expected, every_part, tmp_path):
    other = changed(every_part, tmp_path / "other.safetensors", **{MOVED: 2.0})
    out = tmp_path / "new" / "mean.safetensors"
    average_weights([every_part, other], SMALL, out, shares)
    before, mean = load_file(every_part), load_file(out)
    assert mean.keys() == before.keys()
    assert torch.allclose(mean.pop(MOVED), before.pop(MOVED) + expected)
    assert all(torch.equal(value, before[name]) for name, value in mean.items())  # 0.25 a + 0.75 a is a


@pytest.mark.parametrize(
    "name, by", [("codebook.codewords", 0.5), ("continuous.exact.known.bias", 1), ("index_prior.exact.step", 1)]
)
def test_what_has_no_mean_has_to_be_the_same(name, by, every_part, tmp_path):
    other = changed(every_part, tmp_path / "other.safetensors", **{name: by})
    with pytest.raises(TrainingError, match=f"other.safetensors and .* differ in {name}.*before `freeze`"):
        average_weights([every_part, other], SMALL, tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()


@pytest.mark.parametrize("order", [1, -1])
def test_a_network_that_one_has_not_frozen_is_not_frozen_in_the_mean(order, every_part, tmp_path):
    """As when joint training went on from a release."""
    tensors = load_file(every_part)
    thawed = {name: torch.zeros_like(value) for name, value in tensors.items() if name.startswith("continuous.exact.")}
    assert any(tensors[name].any() for name in thawed)
    save_file(tensors | thawed | {MOVED: tensors[MOVED] + 2}, tmp_path / "joint.safetensors")
    average_weights([every_part, tmp_path / "joint.safetensors"][::order], SMALL, tmp_path / "mean.safetensors")
    mean = load_file(tmp_path / "mean.safetensors")
    assert torch.allclose(mean[MOVED], tensors[MOVED] + 1)
    for name, value in mean.items():
        if name.startswith(("continuous.exact.", "index_prior.exact.")):
            assert torch.equal(value, thawed.get(name, tensors[name])), name


def test_what_only_the_tokenizer_reads_is_of_the_first(every_part, tmp_path):
    other = changed(every_part, tmp_path / "other.safetensors", **{"codebook.average_sum": 1.0})
    average_weights([other, every_part], SMALL, tmp_path / "mean.safetensors")
    name = "codebook.average_sum"
    assert torch.equal(load_file(tmp_path / "mean.safetensors")[name], load_file(other)[name])


def test_a_release_and_what_training_made_of_it_keep_the_model(tmp_path):
    """With the floats that its integers were frozen from, which lie in the file beside it."""
    model, ablations = random_model(0), Ablations(SMALL)
    model.half().float()
    release = tmp_path / "release.safetensors"
    save_release(release, model, {})
    names = [name for name, _ in ablations.named_children()]
    save_ablation(tmp_path / "release-ablation.safetensors", model, ablations.half().float(), names)
    moved = tmp_path / "moved.safetensors"
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights | {MOVED: weights[MOVED] + 1}, moved)
    average_weights([release, moved], SMALL, tmp_path / "mean.safetensors", [0.5, 0.5])

    mean = load_file(tmp_path / "mean.safetensors")
    averaged = HybridFlow(SMALL)
    averaged.load_state_dict(averaged.state_dict() | mean)
    assert model_id(averaged) == model_id(load_release(release)[0])
    assert torch.allclose(mean[MOVED], weights[MOVED] + 0.5)
    assert not any(name.startswith("codebook_decoder.") for name in mean)  # the release alone has it


def test_second_decoders_have_a_mean(every_part, tmp_path):
    weights = load_file(every_part)
    first = {name: value for name, value in weights.items() if name.startswith(("pixel_decoder.", "correction."))}
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for by, path in enumerate(paths):
        save_file(weights | {f"perceptual.{name}": value + by for name, value in first.items()}, path)
    average_weights(paths, SMALL, tmp_path / "mean.safetensors")
    mean = load_file(tmp_path / "mean.safetensors")
    assert torch.allclose(mean[f"perceptual.{MOVED}"], weights[MOVED] + 0.5)


def test_weights_without_a_part_in_common_have_no_mean(every_part, tmp_path):
    weights = load_file(every_part)
    for part in ("predictor", "correction"):
        some = {name: value for name, value in weights.items() if name.startswith(f"{part}.")}
        save_file(some, tmp_path / f"{part}.safetensors")
    paths = [tmp_path / "predictor.safetensors", tmp_path / "correction.safetensors"]
    with pytest.raises(TrainingError, match="no part in common"):
        average_weights(paths, SMALL, tmp_path / "mean.safetensors")


@pytest.mark.parametrize(
    "shares, message",
    [(["1"], "give one for each"), (["0.5", "0.6"], "add up to 1.1"), (["1", "nan"], "add up to nan")],
)
def test_shares_that_make_no_mean_are_told(shares, message, every_part, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hybridflow.model.PRESETS", {"tiny": SMALL})
    out = tmp_path / "mean.safetensors"
    assert main(["average", str(every_part), str(every_part), "--out", str(out), "--shares", *shares]) == 1
    assert message in capsys.readouterr().err and not out.exists()
