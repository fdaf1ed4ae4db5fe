"""Quantise the trained networks of the exact path to the integers of `hybridflow.exact`, fit the tables.

After training and without gradients: int8 weights with a scale an output channel (Krishnamoorthi, arXiv 1806.08342,
section 3), 7-bit activations whose ranges are measured on photos at all qualities. A ReLU network takes a
range for every channel: what that multiplies a channel by, the next layer's weights divide out (Nagel et al., ICCV
2019, section 4.1). Weights are rounded one input after the other, those yet to come making good, on the same photos,
what rounding did (GPTQ, Frantar et al., ICLR 2023, section 3).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import load_parts, parts_of, save_parts
from hybridflow.container import QUALITIES
from hybridflow.continuous import ContinuousCodec
from hybridflow.draws import Draws
from hybridflow.errors import TrainingError
from hybridflow.exact import ACTIVATION_MAX, EXPONENTIALS, LOGIT_STEPS, SHIFT, IntegerContextModel, IntegerConv
from hybridflow.masking import random_mask
from hybridflow.model import HybridFlow
from hybridflow.probability import MEAN_STEPS, ContextModel, QualityTable
from hybridflow.training.data import PhotoSet
from hybridflow.training.tables import count_distances, fit_shares

COUNT, SIDE = 64, 256
"""Photos and side of their crops, in pixels, on which activations are measured."""
PASSES = 3
"""Qualities at which every photo is seen."""
BATCH = 8
WEIGHT_MAX = 127
EXPONENTIAL_BITS = 30
DAMPING = 0.01
"""Share of the inputs' mean square that is added to each one's own, as photos not seen here have other inputs."""
CLIPS = torch.linspace(0.3, 1.3, 21)
"""Multiples of a channel's largest activation that are tried as its range; above 1 for photos not seen here."""
_TINY = 1e-9


@torch.no_grad()
def freeze(model: HybridFlow, images: Tensor) -> None:
    """Freeze what is not frozen yet: the continuous codec's probability networks and tables, the index prior.

    Args:
        model: trained; left in eval mode.
        images: (N,3,H,W) in [0,1], H and W multiples of 16, on which activations are measured; qualities are spread
            over them.
    """
    model.eval()
    images = images.repeat(max(1, BATCH // len(images)), 1, 1, 1)  # few photos see all qualities too
    quality = torch.linspace(0, QUALITIES - 1, len(images)).round().long().to(images.device)
    batches = [
        batch
        for number in range(PASSES)
        for batch in zip(images.split(BATCH), quality.roll(number * len(images) // PASSES).split(BATCH))
    ]
    if not model.continuous.exact.frozen:
        _freeze_latent_model(model.continuous, batches)
        model.continuous.bake_tables(fit_shares(count_distances(model.continuous, batches)))
    if not model.index_prior.exact.frozen:
        _freeze_index_prior(model, batches)


def held_out_photos(data: Path) -> PhotoSet:
    """The photos of a folder's validation split that activations are measured on, and operating points by."""
    return PhotoSet(data, "validation", min_side=SIDE, limit=COUNT)


def freeze_weights(weights: Path, preset: str, out: Path, photos: PhotoSet) -> None:
    """Freeze the weights of a run, or of a folder of parts.

    Args:
        weights: safetensors of a run.
        out: safetensors to write, for `refit` to start from.
        photos: to measure activations on.

    Raises:
        TrainingError: there is no continuous codec to freeze.
    """
    model = HybridFlow(preset)
    ablations = Ablations(model.preset)
    loaded = load_parts(weights, model, ablations)
    if "continuous" not in loaded:
        raise TrainingError(f"{weights} lacks continuous: name what joint left, or a folder of all parts")
    freeze(model, photos.centre_crops(COUNT, SIDE))
    save_parts(out, parts_of(loaded, model, ablations))


def _freeze_latent_model(codec: ContinuousCodec, batches: list[tuple[Tensor, Tensor]]) -> None:
    hyper, context, exact = codec.hyper_synthesis, codec.context, codec.exact
    synthesis = hyper.middle[0], hyper.middle[3], hyper.middle[5]
    layers = hyper.inward, hyper.middle[1], hyper.middle[4], hyper.outward[0]
    with (
        _units(*synthesis, *context.body[::2], *codec.hyper_prior.body[::2]) as units,
        _moments(*layers, *_context_layers(context), *_context_layers(codec.hyper_prior)) as moments,
    ):
        for images, quality in batches:
            codec(images, quality)
    inward, doubled, middle, hidden = units[:4]

    _quantise(exact.inward, *_affine(hyper.inward, hyper.quality), 1, inward, moments[0])
    _quantise(exact.upward, *_affine(hyper.middle[1]), inward, doubled.repeat_interleave(4), moments[1])
    _quantise(exact.middle, *_affine(hyper.middle[4]), doubled, middle, moments[2])
    # Hyper-synthesis ends, and the context model begins, with a linear layer: the two are frozen as their product.
    reader, reader_bias = _affine(context.features)
    weight, bias = _affine(hyper.outward[0])
    weight = torch.einsum("of,fpi->opi", reader, weight.unflatten(0, (-1, 4))).flatten(0, 1)
    bias = (reader @ bias.view(-1, 4)).view(1, -1)
    _quantise(exact.outward, weight, bias, middle, hidden.repeat_interleave(4), moments[3])
    _freeze_context(context, exact, units[3:6], moments[4:8], reader_bias)
    _freeze_context(codec.hyper_prior, exact.hyper_prior, units[6:], moments[8:])


def _context_layers(context: ContextModel) -> tuple[nn.Module, ...]:
    return context.known, context.body[1], context.body[3], context.out


def _freeze_context(
    context: ContextModel,
    exact: IntegerContextModel,
    units: list[Tensor],
    moments: list[Tensor],
    features_bias: Tensor | float = 0.0,
) -> None:
    """Freeze all but the reader of features, given the steps of the three rectifiers and the layers' moments."""
    hidden, first, second = units
    weight, bias = _affine(context.known, context.quality)
    _quantise(exact.known, weight, bias + features_bias, 1 / MEAN_STEPS, hidden, moments[0])
    exact.step.copy_(_fixed_point(context.step / hidden))
    _quantise(exact.first, *_affine(context.body[1]), hidden, first, moments[1])
    _quantise(exact.second, *_affine(context.body[3]), first, second, moments[2])
    weight, bias = _affine(context.out)
    slope = torch.tensor([MEAN_STEPS, ContextModel.SCALE_SLOPE]).repeat_interleave(context.channels).to(weight)
    start = torch.tensor([0, ContextModel.SCALE_START]).repeat_interleave(context.channels).to(weight)
    _quantise(exact.out, weight * slope[:, None], bias * slope + start, second, 1, moments[3])
    exact.note()


def _freeze_index_prior(model: HybridFlow, batches: list[tuple[Tensor, Tensor]]) -> None:
    prior, exact = model.index_prior, model.index_prior.exact
    latent, out = prior.latent, prior.out
    layers = latent[0], latent[2], latent[4], prior.known, out[1], out[3]
    with _units(latent[1], latent[3], out[0], out[2]) as units, _moments(*layers) as moments:
        for images, quality in batches:
            indices = model.indices_of(images)
            y_gained = model.continuous(images, quality).y_gained
            draws = Draws(0, 0, torch.arange(len(images), device=images.device))
            for sent in (torch.ones_like(indices, dtype=torch.bool), random_mask(draws, *indices.shape[1:])):
                model.index_likelihoods(indices, sent, y_gained, quality)
    first, second, third, hidden = units

    _quantise(exact.first, *_affine(latent[0]), 1 / MEAN_STEPS, first, moments[0])
    _quantise(exact.second, *_affine(latent[2]), first, second, moments[1])
    _quantise(exact.third, *_affine(latent[4], prior.quality), second, third, moments[2])
    embedding = prior.embedding.weight.double()
    unit = embedding.abs().amax(0).clamp(min=_TINY) / WEIGHT_MAX
    exact.embedding.copy_((embedding / unit).round())
    _quantise(exact.known, *_affine(prior.known), unit, third, moments[3])
    exact.step.copy_(_fixed_point(prior.step / third))
    _quantise(exact.hidden, *_affine(out[1]), third, hidden, moments[4])
    _quantise(exact.out, *_affine(out[3]), hidden, 1 / LOGIT_STEPS, moments[5])
    exponents = -torch.arange(EXPONENTIALS, dtype=torch.float64) / LOGIT_STEPS
    exact.exponential.copy_((2**EXPONENTIAL_BITS * exponents.exp()).round())
    exact.note()


def _affine(layer: nn.Conv2d | nn.Linear, quality: QualityTable | None = None) -> tuple[Tensor, Tensor]:
    """Weights (out, in * k * k) and biases (1, out), or (QUALITIES, out) with a quality table, in float64."""
    bias = layer.bias.double()[None]
    if quality is not None:
        bias = bias + deepcopy(quality).double()(torch.arange(QUALITIES, device=bias.device))
    return layer.weight.double().flatten(1), bias


@contextmanager
def _units(*rectifiers: nn.ReLU) -> Iterator[list[Tensor]]:
    """Filled, at the end, with the step of each rectifier's 7-bit activations: (C,) float64 each, by `_step`."""
    seen: list[list[Tensor]] = [[] for _ in rectifiers]
    units: list[Tensor] = []
    with ExitStack() as hooks:
        for rectifier, outputs in zip(rectifiers, seen):

            def keep(module: nn.Module, arguments: tuple, output: Tensor, outputs: list = outputs) -> None:
                outputs.append(output.movedim(1, -1).flatten(0, -2))

            hooks.callback(rectifier.register_forward_hook(keep).remove)
        yield units
    units.extend(_step(torch.cat(outputs)) for outputs in seen)


@contextmanager
def _moments(*layers: nn.Conv2d | nn.Linear) -> Iterator[list[Tensor]]:
    """Filled, at the end, with the mean of x x' for the x that each layer's weights (out, n) are multiplied by: (n, n)
    float64 each."""
    sums, counts = [0.0] * len(layers), [0] * len(layers)
    moments: list[Tensor] = []
    with ExitStack() as hooks:
        for number, layer in enumerate(layers):

            def add(module: nn.Module, arguments: tuple, number: int = number) -> None:
                columns = _columns(module, arguments[0].float())
                sums[number] += (columns @ columns.T).double()
                counts[number] += columns.shape[1]

            hooks.callback(layer.register_forward_pre_hook(add).remove)
        yield moments
    moments.extend(total / count for total, count in zip(sums, counts))


def _columns(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """What the weights (out, n) of a layer are multiplied by: (n, positions of all samples)."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).T
    kernel = layer.kernel_size[0]
    return F.unfold(x, kernel, padding=kernel // 2).transpose(0, 1).flatten(1)


def _step(activations: Tensor) -> Tensor:
    """Activations (N,C), not negative -> the step (C,) float64 between 7-bit values with the least squared error."""
    largest = activations.amax(0)
    steps = CLIPS.to(largest)[:, None] * largest.clamp(min=1e-3 * float(largest.max()) + _TINY) / ACTIVATION_MAX
    errors = [((activations / s).round().clamp(max=ACTIVATION_MAX) * s - activations).square().mean(0) for s in steps]
    return steps.gather(0, torch.stack(errors).argmin(0)[None])[0].double()


def _quantise(
    target: IntegerConv,
    weight: Tensor,
    bias: Tensor,
    unit_in: Tensor | float,
    unit_out: Tensor | float,
    moment: Tensor,
) -> None:
    """Fill a layer from weights (out, in * k * k) and biases (rows, out); units are what an integer stands for, one
    for all channels or one each; the moment is that of its inputs."""
    units = torch.as_tensor(unit_in).to(weight).reshape(-1)
    units = units.repeat_interleave(weight.shape[1] // len(units))
    scaled = weight * units / torch.as_tensor(unit_out).reshape(-1, 1)
    multiplier = _fixed_point(scaled.abs().amax(1) / WEIGHT_MAX).clamp(min=1)
    target.weight.copy_(_round_with_feedback(scaled * 2**SHIFT / multiplier[:, None], moment / units[:, None] / units))
    target.multiplier.copy_(multiplier)
    target.bias.copy_(_fixed_point(bias / unit_out))


def _round_with_feedback(weight: Tensor, moment: Tensor) -> Tensor:
    """Weights (out, n) -> integers within WEIGHT_MAX that change little of what the layer gives: each column's error is
    spread over those not rounded yet, the strongest inputs first.

    Args:
        moment: of the inputs, (n, n) in integers' units, to which their own rounding is added and DAMPING.
    """
    strength = moment.diagonal() + 1 / 12
    order = strength.argsort(descending=True)
    moment = (moment + torch.diag(1 / 12 + DAMPING * strength.mean().expand(len(moment))))[order][:, order]
    spread = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment)), upper=True)
    rest, rounded = weight[:, order], torch.empty_like(weight)
    for column, place in enumerate(order):
        rounded[:, place] = rest[:, column].round().clamp(-WEIGHT_MAX, WEIGHT_MAX)
        error = (rest[:, column] - rounded[:, place]) / spread[column, column]
        rest[:, column:] -= error[:, None] * spread[column, column:]
    return rounded


def _fixed_point(x: Tensor) -> Tensor:
    """Units of 2**-SHIFT, saturated to 32 bits."""
    return (x * 2**SHIFT).round().clamp(-(2**31), 2**31 - 1)
