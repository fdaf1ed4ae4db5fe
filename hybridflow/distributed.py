"""What one process of a training run must know of the others. A run of one process needs none of it."""

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of every process's x, which has no gradient; all processes must call this."""
    if processes() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total


def from_first_process(x: Tensor) -> Tensor:
    """The x of process 0; all processes must call this with the same shape."""
    if processes() > 1:
        dist.broadcast(x, 0)
    return x


def mean_over_processes(x: Tensor) -> Tensor:
    """Like `sum_over_processes`, divided by their number."""
    return sum_over_processes(x) / processes()


def agreed(value: float, device: torch.device) -> float:
    """The mean of every process's number, the same in all; one process alone does not wait for its device."""
    if processes() == 1:
        return value
    return float(mean_over_processes(torch.tensor(value, dtype=torch.float64, device=device)))
