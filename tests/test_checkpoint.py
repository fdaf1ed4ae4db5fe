"""Weights on disk: what a release holds, that it comes back exactly, and one line for every other file."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import SMALL, random_model
from safetensors.torch import load_file, save_file

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import (
    LARGEST_PART,
    held_parts,
    load_parts,
    load_release,
    model_id,
    read_weights,
    save_ablation,
    save_half,
    save_release,
    split_parts,
)
from hybridflow.errors import CheckpointError, HybridFlowError
from hybridflow.model import HybridFlow
from hybridflow.training.cli import PARTS
from hybridflow.weights import checkpoint_file, weights_folder


@pytest.fixture(scope="module")
def model():
    return random_model(3)


def test_a_release_comes_back_exactly_in_half_precision(model, tmp_path):
    save_release(tmp_path / "a.safetensors", model, {"about": "a test"})
    loaded, metadata = load_release(tmp_path / "a.safetensors")
    assert metadata["about"] == "a test" and loaded.preset == SMALL
    halved, _ = read_weights(tmp_path / "a.safetensors")
    own = model.state_dict()
    assert set(halved) < set(own)
    for key, value in loaded.state_dict().items():
        assert value.dtype == own[key].dtype
        if key in halved:
            rounded = own[key].half().float() if own[key].is_floating_point() else own[key]
            assert torch.equal(value, rounded), key
    save_release(tmp_path / "b.safetensors", loaded, {"about": "a test"})
    again, _ = read_weights(tmp_path / "b.safetensors")
    assert set(again) == set(halved) and all(torch.equal(again[key], halved[key]) for key in halved)


def test_a_release_is_half_precision_with_whole_tables_and_nothing_of_training(model, tmp_path):
    save_release(tmp_path / "a.safetensors", model, {})
    weights, metadata = read_weights(tmp_path / "a.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float16}
    assert weights["continuous.scale_counts"].dtype == torch.int32
    absent = set(model.state_dict()) - set(weights)
    assert {"codebook.average_count", "codebook.average_sum", "codebook.started"} < absent
    frozen = ("hyper_prior.", "hyper_synthesis.", "context.")
    floats = (*(f"continuous.{name}" for name in frozen), "index_prior.")  # of which there are integers
    assert all(key.startswith(("codebook.", *floats)) or key.endswith("bound") for key in absent)
    assert not any(key.startswith(floats) and ".exact." not in key for key in weights)
    assert weights["index_prior.exact.out.weight"].dtype == torch.int8
    assert json.loads(metadata["preset"])["num_codes"] == SMALL.num_codes


def test_likelihoods_keep_their_floor(model, tmp_path):
    """CompressAI stores it as a buffer, 1e-9, which is zero in half precision."""
    save_release(tmp_path / "a.safetensors", model, {})
    loaded, _ = load_release(tmp_path / "a.safetensors")
    for name, value in model.state_dict().items():
        if name.endswith("bound"):
            assert torch.equal(loaded.state_dict()[name], value), name
    with torch.inference_mode():
        likelihoods = loaded(100 * torch.randn(1, 3, 64, 64), 63)["likelihoods"]
    assert likelihoods["y"].min() > 0 and likelihoods["z"].min() > 0


def foreign_files(folder):
    (folder / "text").write_text("not weights\n")
    (folder / "empty").write_bytes(b"")
    torch.save({"a": torch.zeros(3)}, folder / "torch")
    (folder / "pickle").write_bytes(pickle.dumps({"a": 1}))
    save_file({"a": torch.zeros(3)}, folder / "no-preset")
    save_file({"a": torch.zeros(3)}, folder / "other-sizes", {"preset": json.dumps({"depth": 3})})
    save_file({"a": torch.zeros(3)}, folder / "no-json", {"preset": "{"})
    large = {"predictor_depth": 10**9}, {"encoder_widths": [10**7] * 3}, {"predictor_dim": 4096}
    for sizes in (*large, {"encoder_depths": [1, 2]}):
        preset = json.dumps(asdict(SMALL) | sizes)
        save_file({"a": torch.zeros(3)}, folder / f"other-{next(iter(sizes))}", {"preset": preset})
    return [*folder.iterdir(), folder / "absent"]


def test_other_files_are_errors_of_one_line(tmp_path):
    for path in foreign_files(tmp_path):
        with pytest.raises(CheckpointError) as error:
            load_release(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="it is a folder"):
        load_release(tmp_path)


def test_a_release_with_a_missing_or_foreign_tensor(model, tmp_path):
    save_release(tmp_path / "whole.safetensors", model, {})
    weights, metadata = read_weights(tmp_path / "whole.safetensors")
    key = "pixel_decoder.head.1.0.weight"
    for name, changed in {
        "missing": {k: v for k, v in weights.items() if k != key},
        "foreign": weights | {"extra": torch.zeros(2)},
        "misshapen": weights | {key: weights[key][:1].contiguous()},
    }.items():
        save_file(changed, tmp_path / name, metadata)
        with pytest.raises(CheckpointError) as error:
            load_release(tmp_path / name)
        assert "\n" not in str(error.value)


def test_parts_load_each_whole_into_whoever_owns_them(model, tmp_path):
    parts = {f"correction.{k}": v.contiguous() for k, v in model.correction.state_dict().items()}
    torch.manual_seed(9)
    target, ablations = HybridFlow(SMALL), Ablations(SMALL)
    baseline = {f"light_synthesis.{k}": v + 1 for k, v in ablations.light_synthesis.state_dict().items()}
    save_file(parts | baseline, tmp_path / "parts")
    untouched = target.pixel_decoder.head[-1].weight.clone()
    load_parts(tmp_path / "parts", target, ablations)
    for key, value in target.correction.state_dict().items():
        assert torch.equal(value, parts[f"correction.{key}"])
    for key, value in ablations.light_synthesis.state_dict().items():
        assert torch.equal(value, baseline[f"light_synthesis.{key}"])
    assert torch.equal(target.pixel_decoder.head[-1].weight, untouched)


@pytest.mark.parametrize("init", ["", "a.safetensors"])
def test_files_of_two_models_are_not_mixed(init, model, tmp_path):
    save_release(tmp_path / "a.safetensors", model, {"model_id": model_id(model).hex()})
    save_ablation(tmp_path / "a-ablation.safetensors", random_model(1), Ablations(SMALL), ["blind_predictor"])
    for read in (held_parts, lambda path: load_parts(path, HybridFlow(SMALL), Ablations(SMALL))):
        with pytest.raises(CheckpointError, match="several models"):
            read(tmp_path / init)


def test_a_folder_holds_every_tensor_once(every_part, tmp_path):
    for name in ("best", "weights"):
        (tmp_path / f"{name}.safetensors").write_bytes(every_part.read_bytes())
    with pytest.raises(CheckpointError, match="best.safetensors and weights.safetensors both hold .*: name one"):
        held_parts(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, model, tmp_path):
    broken = HybridFlow(SMALL)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.pixel_decoder.head[-1].bias[0] = value
    save_release(tmp_path / "a.safetensors", broken, {})
    for load in (load_release, lambda path: load_parts(path, HybridFlow(SMALL))):
        with pytest.raises(CheckpointError, match="a.safetensors: pixel_decoder.head.*bias is not finite"):
            load(tmp_path / "a.safetensors")


def test_the_parts_that_are_there_are_known_without_loading(every_part, model, tmp_path):
    assert held_parts(every_part) == load_parts(every_part, HybridFlow(SMALL), Ablations(SMALL))
    save_release(tmp_path / "tiny.safetensors", model, {})
    save_ablation(tmp_path / "tiny-ablation.safetensors", model, Ablations(SMALL), ["blind_predictor"])
    assert {"predictor", "blind_predictor"} < held_parts(tmp_path / "tiny.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        held_parts(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("init", ["", "a.safetensors"])
def test_training_goes_on_from_a_release(init, model, tmp_path):
    """The floats that its integers were frozen from lie in the ablation file."""
    save_release(tmp_path / "a.safetensors", model, {})
    save_ablation(tmp_path / "a-ablation.safetensors", model, Ablations(SMALL), ["blind_predictor"])
    target = HybridFlow(SMALL)
    assert "blind_predictor" in load_parts(tmp_path / init, target, Ablations(SMALL))
    own = model.state_dict()
    for key, value in target.state_dict().items():
        if not key.startswith("codebook.") and not key.endswith("bound"):
            assert torch.equal(value, own[key].half().float() if own[key].dtype == torch.float32 else own[key]), key
    assert model_id(target) == model_id(load_release(tmp_path / "a.safetensors")[0])
    (tmp_path / "a-ablation.safetensors").unlink()
    with pytest.raises(CheckpointError, match="continuous lacks the floats.*NAME-ablation.safetensors"):
        load_parts(tmp_path / init, HybridFlow(SMALL))


def test_parts_that_were_never_frozen_load(model, tmp_path):
    weights = {key: value.contiguous() for key, value in model.state_dict().items() if ".exact." not in key}
    save_file(weights, tmp_path / "weights")
    target = HybridFlow(SMALL)
    load_parts(tmp_path / "weights", target)
    assert not target.continuous.exact.frozen and not target.index_prior.exact.frozen


def test_numbers_that_stand_in_the_code_are_not_loaded(model, tmp_path):
    """In half precision the least likelihood is 0, with which a rate may be infinite."""
    half = {key: v.half() if v.is_floating_point() else v for key, v in model.state_dict().items()}
    assert any(key.endswith("bound") and value == 0 for key, value in half.items())
    save_file({key: value.contiguous() for key, value in half.items()}, tmp_path / "half.safetensors")
    target = HybridFlow(SMALL)
    bounds = {key: value.clone() for key, value in target.state_dict().items() if key.endswith("bound")}
    load_parts(tmp_path / "half.safetensors", target)
    assert all(torch.equal(target.state_dict()[key], value) for key, value in bounds.items())


def test_parts_that_do_not_fit(model, tmp_path):
    save_file({"correction.trunk.entries.0.weight": torch.zeros(2, 2)}, tmp_path / "misfit")
    save_file({"nothing.weight": torch.zeros(2)}, tmp_path / "foreign")
    for name, word in (("misfit", "correction"), ("foreign", "no part")):
        with pytest.raises(CheckpointError, match=word) as error:
            load_parts(tmp_path / name, model)
        assert "\n" not in str(error.value)


def test_no_file_of_a_part_of_base_is_too_large(tmp_path):
    model = HybridFlow("base")
    model.add_perceptual()
    weights = model.state_dict() | Ablations(model.preset).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "weights.safetensors")
    paths = split_parts(tmp_path / "weights.safetensors", tmp_path / "parts", PARTS)
    assert all(path.stat().st_size <= LARGEST_PART for path in paths) and len(paths) == len(PARTS) + 3
    second = HybridFlow("base")
    second.add_perceptual()
    assert "perceptual" in load_parts(tmp_path / "parts", second)
    for key, value in second.perceptual.state_dict().items():
        torch.testing.assert_close(value, model.perceptual.state_dict()[key].half().float())


def test_a_large_part_is_split_into_all_of_its_tensors(monkeypatch, tmp_path):
    monkeypatch.setattr("hybridflow.checkpoint.LARGEST_PART", 1000)
    source, target = random_model(0), random_model(1)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    split_parts(tmp_path / "weights.safetensors", tmp_path / "parts", ["continuous", "predictor"])
    load_parts(tmp_path / "parts", target)
    for name in ("continuous", "predictor"):
        for key, value in getattr(source, name).state_dict().items():
            expected = value.half().float() if value.is_floating_point() and not key.endswith("bound") else value
            assert torch.equal(getattr(target, name).state_dict()[key], expected), key


def test_parts_of_a_run_are_split_and_loaded_from_their_folder(tmp_path):
    source, target = random_model(0), random_model(1)
    source.codebook.average_sum.mul_(1e6)  # as of a large batch: more than half precision holds
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    split_parts(tmp_path / "weights.safetensors", tmp_path / "parts", ["codebook", "predictor"])
    before = target.pixel_decoder.state_dict()["head.1.0.weight"].clone()
    load_parts(tmp_path / "parts", target)
    for name in ("codebook", "predictor"):
        for key, value in getattr(source, name).state_dict().items():
            rounded = value.is_floating_point() and not key.startswith("average_")
            expected = value.half().float() if rounded else value
            assert torch.equal(getattr(target, name).state_dict()[key], expected)
    assert torch.equal(target.pixel_decoder.state_dict()["head.1.0.weight"], before)
    with pytest.raises(CheckpointError, match="no part nonsense"):
        split_parts(tmp_path / "weights.safetensors", tmp_path / "new", ["nonsense"])
    assert not (tmp_path / "new").exists()
    with pytest.raises(HybridFlowError, match="cannot write .*choose another place"):
        split_parts(tmp_path / "weights.safetensors", tmp_path / "weights.safetensors", ["codebook"])


def test_equal_weights_make_equal_files(tmp_path):
    """safetensors alone writes metadata in another order every time."""
    metadata = {name: f"\"{name}\" é {'x' * number}" for number, name in enumerate("abcdefgh")}
    weights = {f"part.{number}": torch.rand(number + 1) for number in range(5)}
    for name in ("a", "b"):
        save_half(tmp_path / name, weights, metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read, found = read_weights(tmp_path / "a")
    assert found == metadata and all(torch.equal(read[key], weights[key].half()) for key in weights)


def test_a_path_is_ones_own_file_whatever_its_name(tmp_path):
    assert checkpoint_file(tmp_path / "weights") == tmp_path / "weights"


def test_weights_of_a_checkout_lie_beside_the_package(monkeypatch):
    def absent(_):
        raise ModuleNotFoundError

    monkeypatch.setattr("hybridflow.weights.resources.files", absent)
    assert weights_folder() == Path(__file__).parents[1] / "checkpoints"


def test_a_release_with_a_count_of_zero_is_refused(checkpoint_path, tmp_path):
    weights, metadata = read_weights(checkpoint_path)
    counts = weights["continuous.scale_counts"]
    counts[3, 5, 0] += counts[3, 5, 7]
    counts[3, 5, 7] = 0
    save_file(weights, tmp_path / "wrong.safetensors", metadata)
    with pytest.raises(CheckpointError, match="no tables"):
        load_release(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize("entries", [slice(None), slice(0, 1)])
def test_a_release_whose_exponentials_make_no_table_is_refused(entries, checkpoint_path, tmp_path):
    weights, metadata = read_weights(checkpoint_path)
    weights["index_prior.exact.exponential"][entries] = 0
    save_file(weights, tmp_path / "wrong.safetensors", metadata)
    with pytest.raises(CheckpointError, match="no tables"):
        load_release(tmp_path / "wrong.safetensors")


def test_a_release_that_makes_other_bits_than_it_says_is_refused(checkpoint_path, tmp_path):
    weights, metadata = read_weights(checkpoint_path)
    made_by = model_id(load_release(checkpoint_path)[0]).hex()
    save_file(weights, tmp_path / "a.safetensors", metadata | {"model_id": made_by})
    load_release(tmp_path / "a.safetensors")
    weights["continuous.exact.first.weight"].flatten()[7] ^= 1
    save_file(weights, tmp_path / "a.safetensors", metadata | {"model_id": made_by})
    with pytest.raises(CheckpointError, match="is damaged, .*: get it again"):
        load_release(tmp_path / "a.safetensors")


def test_parts_whose_names_begin_alike_are_split_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("hybridflow.checkpoint.LARGEST_PART", 0)
    save_file({"a.out.bias": torch.zeros(1), "a.outward.bias": torch.zeros(1)}, tmp_path / "w")
    paths = split_parts(tmp_path / "w", tmp_path / "parts", ["a"])
    assert {path.name: list(load_file(path)) for path in paths} == {
        "a.out.safetensors": ["a.out.bias"],
        "a.outward.safetensors": ["a.outward.bias"],
    }


def test_an_ablation_file_holds_no_baseline_that_was_not_named(tmp_path):
    save_ablation(tmp_path / "a.safetensors", random_model(0), Ablations(SMALL), ["blind_predictor"])
    weights, _ = read_weights(tmp_path / "a.safetensors")
    baselines = {name for name, _ in Ablations(SMALL).named_children()}
    assert {key.partition(".")[0] for key in weights} & baselines == {"blind_predictor"}
