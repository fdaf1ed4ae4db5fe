"""Two measures of the grids that up-sampling leaves in a decoded image. Each is blind to what the other sees.

A decoder without noise of its own can make fine texture only at fixed places of its up-sampling. Where that texture
differs from place to place, gradient energy is uneven over the phases of the grid; where it repeats, the spectrum has
peaks at the grid's frequencies.
"""

import torch
from torch import Tensor

GRID_PERIOD = 16
"""Pixels of an index: grids of 2, 4 and 8, which up-sampling leaves, repeat in it too."""

WINDOW = 4 * GRID_PERIOD
"""Pixels, each way, of the pieces whose spectra are averaged: a grid's peaks are four frequencies apart, twice the
reach of a Hann window's main lobe, so that nothing of them falls midway."""

_ONE_LEVEL = 1 / 255
_MIDWAY = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


def uneven_gradients(x: Tensor, x_hat: Tensor) -> Tensor:
    """How unevenly x_hat's gradient energy, against x's, is spread over the phases of GRID_PERIOD: (B,), 0 if evenly.

    Args:
        x, x_hat: (B,3,H,W) in [0,1], the original and the decoded image, with sides of at least GRID_PERIOD + 1.
    """
    log_ratio = (_phase_energies(x_hat) / _phase_energies(x)).log()
    return log_ratio.var(-1, correction=0).mean(0)


def _phase_energies(image: Tensor) -> Tensor:
    """(B,3,H,W) -> (2,B,GRID_PERIOD): mean squared step between neighbours, of columns and of rows, at each phase.

    A step of a 8-bit level is added, so that a grid too faint to see counts little.
    """
    energies = []
    for side in (image, image.mT):
        columns = side.float().diff().square().mean((1, 2))
        whole = columns.shape[-1] // GRID_PERIOD * GRID_PERIOD
        energies.append(columns[:, :whole].unflatten(1, (-1, GRID_PERIOD)).mean(1) + _ONE_LEVEL**2)
    return torch.stack(energies)


def spectral_peaks(image: Tensor) -> Tensor:
    """How far the power spectrum at the frequencies of grids stands out of its surroundings.

    The spectrum is Welch's (1967): of Hann windows of WINDOW pixels that overlap by half, averaged over windows and
    channels; its surroundings are the geometric mean of the eight frequencies midway to the next ones of the grid.
    Rounding noise of 8 bits is added, so that a grid too faint to see counts little.

    Args:
        image: (B,3,H,W) in [0,1], with sides of at least WINDOW.

    Returns:
        (B,GRID_PERIOD^2-1) in nats: the logarithm of the ratio at each pair of frequencies k/GRID_PERIOD but (0,0).
        Near 0 for a photo.
    """
    window = torch.hann_window(WINDOW, device=image.device)
    window = window[:, None] * window
    pieces = image.float().unfold(2, WINDOW, WINDOW // 2).unfold(3, WINDOW, WINDOW // 2) * window
    # Halves that are added up have every other frequency of the whole.
    folded = pieces.unflatten(-1, (2, -1)).sum(-2).unflatten(-2, (2, -1)).sum(-3)
    spectra = torch.view_as_real(torch.fft.fft2(folded)).square().sum(-1)
    log_power = (spectra.mean((1, 2, 3)) / window.square().sum() + _ONE_LEVEL**2 / 12).log()
    surroundings = torch.stack([log_power.roll(shift, (1, 2)) for shift in _MIDWAY]).mean(0)
    return (log_power - surroundings)[:, ::2, ::2].flatten(1)[:, 1:]
