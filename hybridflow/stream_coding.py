"""The order of things in the stream: z, y_c, a check, the regions' schedules, the sent indices.

Each function runs in both directions: with an `Encoder` it writes the values it is given, with a `Decoder` it reads
them; either way it returns them, so that the two sides cannot drift apart.
"""

import numpy as np
import torch

from hybridflow.container import checksum16
from hybridflow.entropy import Decoder, Encoder
from hybridflow.errors import FormatError
from hybridflow.exact import ProbabilityModel
from hybridflow.masking import region_grid, region_mask, schedule_mask, step_places
from hybridflow.probability import MEAN_STEPS, latent_step_masks
from hybridflow.region_prior import RegionPrior

Coder = Encoder | Decoder

RUN = 4096
"""Values of z, or indices, in a run: each has a table of its own, and a stream that ends early ends before many are
made."""

_CUT = "the continuous stream is damaged or cut short: get the file again from its source"
_SHORT = "the stream ends before its indices do: encode the image again"


def _signed(coder: Coder, values: np.ndarray | None, n: int, counts: np.ndarray) -> np.ndarray:
    if isinstance(coder, Decoder):
        values = coder.decode_signed(n, counts)
        if coder.overrun:
            raise FormatError(_CUT)
        return values
    coder.encode_signed(values, counts)
    return values


def code_z(
    coder: Coder, model: ProbabilityModel, quality: int, h: int, w: int, z: np.ndarray | None = None
) -> np.ndarray:
    """z (Z,ceil(h/4),ceil(w/4)) int64, step by step (`latent_step_masks`), inside a step by channel, row and column, in
    runs of at most `RUN`: distances to the integers below the means.

    Raises:
        FormatError: the stream ends long before its symbols do.
    """
    rows, columns = -(-h // 4), -(-w // 4)
    known = np.zeros((model.z_channels, rows, columns), np.int64)
    for step, mask in enumerate(latent_step_masks(model.z_channels, rows, columns).numpy()):
        mean, scale = (field[mask] for field in model.hyper_step(MEAN_STEPS * known, step, quality))
        values = np.zeros(len(mean), np.int64) if z is None else z[mask]
        for first in range(0, len(mean), RUN):
            run = slice(first, first + RUN)
            below, sixteenths = np.divmod(mean[run], MEAN_STEPS)
            tables = model.scale_counts[sixteenths, scale[run]]
            values[run] = below + _signed(coder, values[run] - below, len(below), tables)
        known[mask] = values
    return known


def code_y(
    coder: Coder, model: ProbabilityModel, quality: int, z: np.ndarray, h: int, w: int, y: np.ndarray | None = None
) -> np.ndarray:
    """y_c in the gained domain -> y^_c (M,h,w) int64, in sixteenths.

    Step by step (`latent_step_masks`); inside a step the symbols are sorted by scale-table index, then by channel, row
    and column, and coded as the rounded distance to their mean. Symbols of the smallest scale are not coded: they are
    their means.

    Args:
        z: (Z,ceil(h/4),ceil(w/4)) int64, coded before.
        y: (M,h,w) float, not rounded; for the encoder.

    Raises:
        FormatError: the stream ends long before its symbols do.
    """
    features, tables = model.hyper_features(z, quality, h, w), model.scale_counts[0]
    known = np.zeros((model.channels, h, w), np.int64)
    for step, mask in enumerate(latent_step_masks(model.channels, h, w).numpy()):
        mean, scale = (field[mask] for field in model.latent_step(known, step, quality, features))
        values = None if y is None else np.rint(y[mask] - mean / MEAN_STEPS).astype(np.int64)
        order = np.argsort(scale, kind="stable")
        residual = np.zeros(len(mean), np.int64)
        starts = np.searchsorted(scale[order], np.arange(len(tables) + 1))
        for index in range(1, len(tables)):
            chosen = order[starts[index] : starts[index + 1]]
            symbols = None if values is None else values[chosen]
            residual[chosen] = _signed(coder, symbols, len(chosen), tables[index])
        known[mask] = residual * MEAN_STEPS + mean
    return known


def code_check(coder: Coder, header: bytes, z: np.ndarray, y: np.ndarray) -> None:
    """16 bits over header, z and y^_c, behind them in the stream.

    Raises:
        FormatError: a decoder came to other values than the encoder.
    """
    check = checksum16(header + z.astype("<i4").tobytes() + y.astype("<i4").tobytes())
    if isinstance(coder, Encoder):
        coder.encode_uniform(check, 16)
    elif coder.decode_uniform(16) != check:
        raise FormatError(_CUT)


def code_sent(
    coder: Coder, schedule: str, h: int, w: int, regions: np.ndarray | None = None, salvage: bool = False
) -> np.ndarray:
    """The sent positions (h,w) bool: for a uniform schedule nothing is coded, for dynamic masking its regions are.

    Args:
        regions: (rows,cols) int64, indices into `UNIFORM_SCHEDULES`; for the encoder of `dynamic`.
        salvage: nothing is sent, in a stream that was cut, where the regions cannot be.
    """
    if schedule != "dynamic":
        return schedule_mask(schedule, h, w).numpy()
    try:
        regions = _code_regions(coder, h, w, regions)
    except FormatError:
        if not salvage:
            raise
        return np.zeros((h, w), bool)
    return region_mask(torch.from_numpy(regions), h, w).numpy()


def _code_regions(coder: Coder, h: int, w: int, regions: np.ndarray | None) -> np.ndarray:
    """In raster order, by the tables of `RegionPrior`."""
    rows, columns = region_grid(h, w)
    prior = RegionPrior(columns)
    for position in range(rows * columns):
        counts = prior.counts()
        if isinstance(coder, Encoder):
            prior.append(int(regions.flat[position]))
            coder.encode(prior.regions[-1:], counts)
        else:
            prior.append(int(coder.decode(1, counts)[0]))
    return np.array(prior.regions).reshape(rows, columns)


def code_indices(
    coder: Coder,
    model: ProbabilityModel,
    quality: int,
    y: np.ndarray,
    sent: np.ndarray,
    indices: np.ndarray | None = None,
    salvage: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The sent (h,w) bool indices (h,w) int64, step by step (`step_places`), each step in raster order.

    Args:
        y: y^_c (M,h,w) int64 in sixteenths, coded before.
        salvage: stop, in a stream that was cut, at the first step that is not there whole.

    Returns:
        The positions (h,w) bool that are known now, `sent` unless salvaging, and their indices, zero elsewhere.

    Raises:
        FormatError: the stream ends long before its indices do, and is not to be salvaged.
    """
    known, out = np.zeros_like(sent), np.zeros(sent.shape, np.int64)
    if not sent.any():
        return known, out
    features = model.index_features(y, quality)
    for step, places in enumerate(step_places(*sent.shape)):
        places = places[torch.from_numpy(sent).flatten()[places]].numpy()
        symbols = indices.flat[places] if isinstance(coder, Encoder) else np.zeros(len(places), np.int64)
        for first in range(0, len(places), RUN):
            run = slice(first, first + RUN)
            counts = model.index_step(features, out, known, step, places[run])
            if isinstance(coder, Encoder):
                coder.encode(symbols[run], counts)
                continue
            try:
                symbols[run] = coder.decode(len(counts), counts)
                if coder.overrun:
                    raise FormatError(_SHORT)
            except FormatError:  # what a cut leaves may say anything, even what cannot be
                if not salvage:
                    raise
                return known, out
        if salvage and coder.past_end:
            break
        out.flat[places] = symbols
        known.flat[places] = True
    return known, out
