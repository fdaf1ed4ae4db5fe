"""Seconds and memory of a call."""

import time

import pytest
import torch

from eval.cost import MIB, _status, cost_of


def test_seconds_are_those_of_the_call():
    result, cost = cost_of(lambda: time.sleep(0.05))
    assert result is None and cost.seconds >= 0.05


@pytest.mark.skipif(cost_of(int)[1].mib is None, reason="this system does not tell a process's peak memory")
def test_memory_that_was_freed_before_counts_again():
    kept = []

    def fill() -> None:
        blocks = [torch.ones(2**12) for _ in range(6400)]
        kept.append(blocks[-1])  # what lies below it stays with the allocator

    costs = [cost_of(fill)[1] for _ in range(3)]
    assert all(90 < cost.mib < 150 for cost in costs)
    assert all(cost.peak_mib > cost.mib for cost in costs)
    assert costs[-1].peak_mib == pytest.approx(_status("VmHWM") / MIB, abs=20)  # since the last call began
