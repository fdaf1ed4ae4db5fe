"""The adaptive prior of regions: its tables, by hand."""

import numpy as np

from hybridflow.entropy import share_counts
from hybridflow.masking import UNIFORM_SCHEDULES
from hybridflow.region_prior import RegionPrior


def test_tables_count_what_came_and_neighbours_once_more():
    prior, expected = RegionPrior(2), [(2, 4, 4, 8), (4, 4, 4, 8), (4, 4, 4, 9), (3, 6, 4, 10), (3, 6, 5, 9)]
    assert len(prior.START) == len(UNIFORM_SCHEDULES)
    for weights, schedule in zip(expected, [0, 3, 1, 2, 2]):
        assert np.array_equal(prior.counts(), share_counts(np.array(weights)))
        prior.append(schedule)
    assert prior.regions == [0, 3, 1, 2, 2]
