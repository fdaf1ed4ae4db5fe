"""freeze-bits: integers follow the floats, only what is not frozen is frozen, and training forgets what it changes."""

import pytest
import torch
from conftest import SMALL, random_model, spread_out
from safetensors.torch import load_file, save_file
from torch import nn

from hybridflow.checkpoint import load_parts, model_id
from hybridflow.cli import main
from hybridflow.errors import CheckpointError, TrainingError
from hybridflow.exact import ACTIVATION_MAX, SHIFT, IntegerConv, IntegerNetwork
from hybridflow.model import HybridFlow
from hybridflow.training.config import TrainConfig
from hybridflow.training.data import PhotoSet
from hybridflow.training.freeze import PASSES, _moments, _quantise, _step, freeze, freeze_weights
from hybridflow.training.loop import Run, start_processes


def noise(batch=8, side=128):
    coarse = torch.rand(batch, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")


@torch.inference_mode()
def estimates(model, image):
    """Bits of y and of all indices: (2, 4 qualities)."""
    likelihoods = [model(image, quality, "full")["likelihoods"] for quality in (0, 20, 40, 63)]
    return torch.tensor([[-p[name].double().log2().sum() for p in likelihoods] for name in ("y", "indices")])


def test_freezing_costs_next_to_nothing(two_splits):
    """Estimated bits of a photo before and after, by Gaussians; the networks are random, which is harder than trained
    ones."""
    torch.manual_seed(5)
    model = spread_out(HybridFlow(SMALL)).eval()
    image = PhotoSet(two_splits, "validation").centre_crops(1, 256)
    before = estimates(model, image)
    freeze(model, noise())
    model.update(force=True)
    after = estimates(model, image)
    assert not torch.equal(before, after) and (after / before - 1).abs().max() < 0.01


def test_a_single_photo_is_enough_to_freeze_by():
    """At all qualities, not at the lowest alone."""
    torch.manual_seed(5)
    few, many = spread_out(HybridFlow(SMALL)).eval(), spread_out(HybridFlow(SMALL)).eval()
    many.load_state_dict(few.state_dict())
    image = noise(1)
    freeze(few, image)
    freeze(many, image.repeat(8, 1, 1, 1))
    assert all(torch.equal(value, many.state_dict()[key]) for key, value in few.state_dict().items())


@torch.inference_mode()
def test_means_and_scales_follow_the_floats():
    model = random_model(0)
    codec, image, quality = model.continuous, noise(2), torch.tensor([10, 50])
    gained, z = codec.gain(codec.analysis(image), quality)
    known = gained.round()
    mean, scale = codec.exact.distribution(
        (16 * known).long(), 2, quality, codec.exact.features(z.round().long(), quality)
    )
    float_mean, float_scale = codec.context(known, 2, quality, codec.hyper_synthesis(z.round(), quality))
    assert (mean / 16 - float_mean).abs().mean() < 0.02 * float_mean.abs().mean() + 1 / 32
    assert (scale - float_scale.clamp(0, 63)).abs().mean() < 1
    mean, scale = codec.exact.hyper_prior.distribution(16 * z.round().long(), 1, quality)
    float_mean, float_scale = codec.hyper_prior(z.round(), 1, quality)
    assert mean.any() and (mean / 16 - float_mean).abs().mean() < 0.02 * float_mean.abs().mean() + 1 / 32
    assert (scale - float_scale.clamp(0, 63)).abs().mean() < 1


def test_the_step_of_activations_spares_outliers_and_covers_the_rest():
    values = torch.rand(100_000, 3, generator=torch.Generator().manual_seed(0))
    values[0, 1] = 3
    values[:, 2] = 0
    step = ACTIVATION_MAX * _step(values)
    assert 0.9 < step[0] < 1.01 and 0.9 < step[1] < 2.5 and 0 < step[2] < 0.1


def test_every_photo_is_seen_at_several_qualities():
    model, seen = HybridFlow(SMALL), []
    model.continuous.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    freeze(model, noise(side=64))
    qualities = torch.stack(seen[:PASSES])
    assert {0, 63} <= set(qualities[0].tolist())
    assert all(len(set(of_photo)) == PASSES for of_photo in qualities.T.tolist())


def test_layers_are_quantised_to_the_nearest_integers_and_saturate():
    layer, units = IntegerConv(6, 4), torch.tensor([0.5, 1, 2, 1, 3, 1]).double()
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 6, generator=generator).double(), torch.tensor([[-1.5, 0.25, 1e9, -1e9]]).double()
    weight[3], out = 0, torch.tensor([1, 2, 0.5, 1]).double()
    _quantise(layer, weight, bias, units, out, torch.eye(6).double())
    steps = layer.multiplier[:, None] / 2**SHIFT * out[:, None] / units
    assert ((layer.weight * steps - weight).abs() <= 0.51 * steps).all()
    assert layer.weight[:3].abs().amax(1).tolist() == [127] * 3 and layer.multiplier.min() >= 1
    assert layer.bias[0, :2].tolist() == [round(-1.5 * 2**SHIFT), round(0.125 * 2**SHIFT)]
    assert layer.bias[0, 2:].tolist() == [2**31 - 1, -(2**31)]


def test_weights_make_good_each_others_rounding_where_inputs_go_together():
    generator = torch.Generator().manual_seed(0)
    weight, mixture = (torch.randn(*shape, generator=generator).double() for shape in ((20, 48), (48, 6)))
    inputs = 40 * mixture @ torch.randn(6, 1000, generator=generator).double()
    layer = IntegerConv(48, 20)
    _quantise(layer, weight, torch.zeros(1, 20), 1, 1, inputs @ inputs.T / 1000)
    scale = layer.multiplier[:, None] / 2**SHIFT
    nearest = (weight / scale).round() * scale

    def error(rounded):
        return float(((rounded - weight) @ inputs).square().mean())

    assert error(layer.weight * scale) < 0.1 * error(nearest)
    assert ((layer.weight * scale - weight).abs() <= 3 * scale).all()


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 1), nn.Linear(3, 5)])
def test_moments_are_of_what_weights_are_multiplied_by(layer):
    nn.init.zeros_(layer.bias)
    shape = (7, 3) if isinstance(layer, nn.Linear) else (3, 6, 7)
    batches = torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), _moments(layer) as moments:
        given = torch.cat([layer(batch) for batch in batches]).movedim(1 if len(shape) == 3 else -1, 0).flatten(1)
    weight, expected = layer.weight.detach().double().flatten(1), (given @ given.T / given.shape[1]).double()
    assert torch.allclose(weight @ moments[0] @ weight.T, expected, rtol=1e-4, atol=1e-5)
    assert not layer._forward_pre_hooks


def test_a_write_cut_short_leaves_what_was_frozen_before(two_splits, every_part, tmp_path, monkeypatch):
    out = tmp_path / "frozen.safetensors"
    out.write_bytes(b"good")

    def cut(tensors, path):
        path.write_bytes(b"ba")
        raise OSError("no space left")

    monkeypatch.setattr("hybridflow.training.freeze.freeze", lambda model, images: None)
    monkeypatch.setattr("hybridflow.checkpoint.save_file", cut)
    with pytest.raises(OSError):
        freeze_weights(every_part, SMALL, out, PhotoSet(two_splits, "validation"))
    assert out.read_bytes() == b"good" and sorted(tmp_path.iterdir()) == [out]


def test_only_what_is_not_frozen_is_frozen():
    model = random_model(0)
    latent = {name: value.clone() for name, value in model.continuous.exact.named_buffers()}
    with torch.no_grad():
        model.continuous.context.out.bias.add_(1)
        model.continuous.hyper_prior.out.bias.add_(1)
        model.index_prior.out[3].bias[0] += 2
    before = model.index_prior.exact.out.bias.clone()
    freeze(model, noise())
    assert torch.equal(model.index_prior.exact.out.bias, before)
    model.index_prior.exact.thaw()
    freeze(model, noise())
    moved = model.index_prior.exact.out.bias[0, 0] - before[0, 0]
    assert moved == pytest.approx(2 * 128 << SHIFT, rel=1e-3)
    assert all(torch.equal(value, latent[name]) for name, value in model.continuous.exact.named_buffers())


def test_whether_it_is_frozen_is_known_without_a_look_at_the_integers():
    frozen, loaded = random_model(0), HybridFlow(SMALL)
    networks = [part for model in (frozen, loaded) for part in model.modules() if isinstance(part, IntegerNetwork)]
    assert [network.frozen for network in networks] == [True, True, True, False, False, False]
    loaded.load_state_dict(frozen.state_dict())
    for network in networks:
        assert network.to("meta").frozen  # where a look would fail
    frozen = random_model(0)
    frozen.continuous.exact.thaw()
    assert not frozen.continuous.exact.frozen and not frozen.continuous.exact.hyper_prior.frozen
    assert frozen.index_prior.exact.frozen


@pytest.mark.parametrize("stage, thawed", [("correction", []), ("refit", ["index_prior"]), ("joint", ["continuous"])])
def test_training_forgets_the_integers_of_what_it_trains(stage, thawed, two_splits, every_part, tmp_path):
    config = TrainConfig(batch=1, crop=64, max_steps=1, relaxed_rate=1)
    run = Run(stage, SMALL, config, PhotoSet(two_splits, "train"), tmp_path, every_part, False, start_processes("cpu"))
    model = run.stage.model
    assert model.continuous.exact.frozen == ("continuous" not in thawed)
    assert model.index_prior.exact.frozen == (stage == "correction")
    run.train()
    after = load_file(tmp_path / "weights.safetensors")
    assert bool(after["continuous.exact.out.multiplier"].any()) == ("continuous" not in thawed)


def test_transforms_leave_bits_alone(two_splits, every_part, tmp_path):
    config = TrainConfig(batch=1, crop=64, max_steps=2, relaxed_rate=1)
    start = start_processes("cpu")
    run = Run("transforms", SMALL, config, PhotoSet(two_splits, "train"), tmp_path, every_part, False, start)
    assert run.stage.model.continuous.exact.frozen
    run.train()
    before, after = HybridFlow(SMALL), HybridFlow(SMALL)
    load_parts(every_part, before)
    load_parts(tmp_path / "weights.safetensors", after)
    assert model_id(before) == model_id(after)
    moved = {
        ".".join(name.split(".")[:2])
        for (name, value), other in zip(before.named_parameters(), after.parameters())
        if name.startswith("continuous.") and not torch.equal(value, other)
    }
    assert moved == {f"continuous.{part}" for part in ("analysis", "hyper_analysis", "log_gain")}


@torch.inference_mode()
def test_refit_sees_the_frozen_y(two_splits, tmp_path):
    frozen = random_model(0)
    save_file({k: v.contiguous() for k, v in frozen.state_dict().items()}, tmp_path / "frozen.safetensors")
    config = TrainConfig(batch=1, crop=64, max_steps=1)
    init = tmp_path / "frozen.safetensors"
    run = Run("refit", SMALL, config, PhotoSet(two_splits, "train"), tmp_path, init, False, start_processes("cpu"))
    image = noise(1)
    _, coded = frozen.write(frozen.analyse(image), 40, "none")
    seen = run.stage.model.continuous(image, torch.tensor([40])).y_gained[0]
    assert (16 * seen.numpy() == coded.y).all()


def test_there_is_something_to_freeze(two_splits, every_part, tmp_path):
    weights = tmp_path / "tokenizer.safetensors"
    save_file({k: v for k, v in load_file(every_part).items() if k.startswith("codebook.")}, weights)
    with pytest.raises(TrainingError, match="lacks continuous"):
        freeze_weights(weights, SMALL, tmp_path / "frozen.safetensors", PhotoSet(two_splits, "validation"))
    assert not (tmp_path / "frozen.safetensors").exists()


def test_refit_wants_frozen_bits(two_splits, tmp_path):
    weights = {key: value.contiguous() for key, value in spread_out(HybridFlow(SMALL)).state_dict().items()}
    save_file(weights, tmp_path / "joint.safetensors")
    config, photos = TrainConfig(batch=1, crop=64, max_steps=1), PhotoSet(two_splits, "train")
    init = tmp_path / "joint.safetensors"
    with pytest.raises(CheckpointError, match="hybridflow freeze"):
        Run("refit", SMALL, config, photos, tmp_path, init, False, start_processes("cpu"))


def test_the_command(two_splits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hybridflow.model.PRESETS", {"tiny": SMALL})
    model = spread_out(HybridFlow(SMALL))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "joint.safetensors")
    out = tmp_path / "frozen" / "weights.safetensors"
    assert main(["freeze", str(tmp_path / "joint.safetensors"), "--data", str(two_splits), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    loaded = HybridFlow(SMALL)
    weights = load_file(out)
    assert set(loaded.state_dict()) == set(weights)
    loaded.load_state_dict({key: weights[key] for key in loaded.state_dict()})
    assert loaded.probability().channels == SMALL.latent_channels
