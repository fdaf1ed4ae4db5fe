"""Which codebook indices are sent: structured schedules, dynamic regions, and the order in which they are coded."""

import torch
from torch import Tensor

from hybridflow.draws import Draws
from hybridflow.errors import HybridFlowError
from hybridflow.probability import INDEX_STEPS

SCHEDULES = ("full", "1_4", "1_9", "none", "dynamic")
UNIFORM_SCHEDULES = SCHEDULES[:4]
REGION = 6
"""Side, in indices, of a region of dynamic masking: a multiple of both cells' sides, so that the lattices meet."""


def require_schedule(schedule: str, among: tuple[str, ...] = SCHEDULES) -> None:
    """HybridFlowError unless there is such a schedule."""
    if schedule not in among:
        raise HybridFlowError(f"there is no schedule {schedule!r}: choose one of {', '.join(among)}")


def _lattice(h: int, w: int, cell: int, offset: int, device) -> Tensor:
    rows = torch.arange(h, device=device) % cell == offset
    columns = torch.arange(w, device=device) % cell == offset
    return rows[:, None] & columns[None, :]


def schedule_mask(schedule: str, h: int, w: int, device=None) -> Tensor:
    """Sent positions (h,w) bool of a uniform schedule: all, one of every 2x2 or 3x3 cell (its centre), or none. Raises
    HybridFlowError if there is no such schedule."""
    require_schedule(schedule, UNIFORM_SCHEDULES)
    if schedule == "full":
        return torch.ones(h, w, dtype=torch.bool, device=device)
    if schedule == "none":
        return torch.zeros(h, w, dtype=torch.bool, device=device)
    if schedule == "1_4":
        return _lattice(h, w, 2, 0, device)
    return _lattice(h, w, 3, 1, device)


def region_grid(h: int, w: int) -> tuple[int, int]:
    """Rows and columns of the regions that cover an index map of h x w from its top left."""
    return -(-h // REGION), -(-w // REGION)


def spread_regions(regions: Tensor, h: int, w: int) -> Tensor:
    """Per-region values (rows,cols) -> per-index values (h,w)."""
    return regions.repeat_interleave(REGION, 0).repeat_interleave(REGION, 1)[:h, :w]


def region_mask(regions: Tensor, h: int, w: int) -> Tensor:
    """Sent positions (h,w) bool of dynamic masking.

    Args:
        regions: (rows,cols) int64 from `region_grid`, each an index into `UNIFORM_SCHEDULES`.
    """
    masks = torch.stack([schedule_mask(s, h, w, regions.device) for s in UNIFORM_SCHEDULES])
    return masks.gather(0, spread_regions(regions, h, w)[None])[0]


def coding_steps(h: int, w: int, device=None) -> Tensor:
    """Step (h,w) int64 in 0..3 at which a sent index is coded, each step seeing those before it.

    Steps 0 and 1 are a checkerboard on the `1_4` lattice, 2 its diagonal neighbours, 3 the rest; so `1_4` takes two
    steps, `full` four, and any mix of regions at most four.
    """
    i = torch.arange(h, device=device)[:, None]
    j = torch.arange(w, device=device)[None, :]
    on_lattice = (i % 2 == 0) & (j % 2 == 0)
    board = (i // 2 + j // 2) % 2
    diagonal = (i % 2 == 1) & (j % 2 == 1)
    return torch.where(on_lattice, board, torch.where(diagonal, 2, 3))


def step_places(h: int, w: int, device=None) -> list[Tensor]:
    """The positions of each of the `coding_steps`: (n,) int64 each, counted in raster order."""
    steps = coding_steps(h, w).flatten()
    return [(steps == step).nonzero()[:, 0].to(device, non_blocking=True) for step in range(INDEX_STEPS)]


def random_mask(draws: Draws, h: int, w: int) -> Tensor:
    """Sent positions (B,h,w) bool for training: half of the samples follow a random uniform schedule, shifted at
    random, the others are sent at a random ratio (MaskGIT, Chang et al., CVPR 2022)."""
    drawn = draws.uniform(5 + h * w)  # at once: on a GPU many small operators take their time
    structured, ratio, row, column, chosen = drawn[:, :5, None, None].unbind(1)
    row, column = (REGION * row).long(), (REGION * column).long()
    schedules = UNIFORM_SCHEDULES[1:]
    lattices = torch.stack([schedule_mask(s, h + REGION, w + REGION, draws.device) for s in schedules])
    rows = row + torch.arange(h, device=draws.device)[:, None]
    columns = column + torch.arange(w, device=draws.device)
    lattice = lattices[(len(schedules) * chosen).long(), rows, columns]
    return torch.where(structured < 0.5, lattice, drawn[:, 5:].unflatten(1, (h, w)) < ratio**2)
