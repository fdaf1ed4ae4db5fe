"""The mean of several runs' weights: model soups (Wortsman et al., ICML 2022), and points on the line from a model to
what training made of it, or beyond.

Runs that go on from one model, each of a seed of its own, end in about the same place but for noise, which their mean
has less of.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import determines_bits, load_parts, parts_of, save_parts
from hybridflow.errors import TrainingError
from hybridflow.exact import IntegerNetwork
from hybridflow.model import HybridFlow, Preset


def average_weights(
    weights: Sequence[Path], preset: str | Preset, out: Path, shares: Sequence[float] | None = None
) -> None:
    """Write the mean of those parts that all weights hold; what gradients do not train is of the first. A network that
    one of them has not frozen, as joint training leaves it, is not frozen in the mean.

    Args:
        weights: safetensors of runs or releases, or folders of parts.
        preset: a name of `PRESETS`, or sizes of your own.
        out: safetensors to write.
        shares: what each counts for, adding up to 1; below 0 the mean lies beyond the others. Alike if None.

    Raises:
        TrainingError: shares are not one for each or do not add up to 1; or the weights have no part in common, or
            differ in what has no mean, frozen integers and codewords.
        CheckpointError: weights cannot be read, or do not fit the preset.
    """
    shares = [1 / len(weights)] * len(weights) if shares is None else shares
    if len(shares) != len(weights):
        raise TrainingError(f"{len(weights)} weights, but {len(shares)} shares: give one for each")
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise TrainingError(f"shares add up to {sum(shares):g}, not to 1: change one of them")
    read, learned, unfrozen = zip(*(_read(path, preset) for path in weights))
    first, thawed = read[0], tuple(itertools.chain(*unfrozen))
    mean = {name: value for name, value in first.items() if all(name in tensors for tensors in read)}
    if not mean:
        raise TrainingError(f"{', '.join(map(str, weights))} have no part in common: name weights of the same parts")
    for name in mean:
        values = [tensors[name] for tensors in read]
        if name in learned[0]:
            mean[name] = sum(share * value.double() for share, value in zip(shares, values)).to(first[name])
        elif name.startswith(thawed):
            mean[name] = torch.zeros_like(first[name])
        elif determines_bits(name):
            for path, value in zip(weights, values):
                if not torch.equal(value, first[name]):
                    mend = "average runs before `freeze`, or such as leave the bits of one model as they are"
                    raise TrainingError(f"{path} and {weights[0]} differ in {name}, which has no mean: {mend}")
    save_parts(out, mean)


def _read(path: Path, preset: str | Preset) -> tuple[dict[str, Tensor], set[str], list[str]]:
    """The tensors of the parts that are there, the names of all that gradients train, and what the names of networks
    start with that are not frozen."""
    model = HybridFlow(preset)
    model.add_perceptual()
    owners = model, Ablations(model.preset)
    tensors = parts_of(load_parts(path, *owners), *owners)
    networks = {n: m for owner in owners for n, m in owner.named_modules() if isinstance(m, IntegerNetwork)}
    learned = {name for owner in owners for name, _ in owner.named_parameters()}
    return tensors, learned, [f"{name}." for name, network in networks.items() if not network.frozen]
