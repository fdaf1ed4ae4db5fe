"""The adaptive prior of dynamic masking's schedules, which go through the entropy coder region by region."""

import numpy as np

from hybridflow.entropy import share_counts


class RegionPrior:
    """A table for the schedule of each region, in raster order, given those before it.

    A schedule weighs what it starts with, one for every region that has it, and one more for each of the left and the
    upper neighbour that has it.

    Args:
        columns: regions in a row.

    Attributes:
        regions: the schedules so far, indices into `hybridflow.masking.UNIFORM_SCHEDULES`.
    """

    START = (2, 4, 4, 8)

    def __init__(self, columns: int) -> None:
        self.regions: list[int] = []
        self._columns = columns
        self._seen = np.array(self.START)

    def counts(self) -> np.ndarray:
        """The next region's table (4,) int64, as the coder takes it."""
        weights, position = self._seen.copy(), len(self.regions)
        if position % self._columns:
            weights[self.regions[-1]] += 1
        if position >= self._columns:
            weights[self.regions[-self._columns]] += 1
        return share_counts(weights)

    def append(self, schedule: int) -> None:
        """The next region has this schedule, 0..3."""
        self._seen[schedule] += 1
        self.regions.append(schedule)
