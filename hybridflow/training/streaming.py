"""Photos of tar shards that are read again and again, for sets that do not fit into memory."""

import atexit
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hybridflow.draws import Draws
from hybridflow.errors import TrainingError
from hybridflow.training.config import TrainConfig
from hybridflow.training.data import Augmentation, PackedPhotos, PhotoSet, decode_photo, files_of_shard, name_skipped
from hybridflow.training.extra import needed


class StreamedPhotos:
    """The train split of tar shards, read by webdataset in worker processes, each photo cropped once when it comes.

    Which photos come is not seeded: a resumed run meets others, every process its own. Each comes as often as every
    other, where a `PhotoSet` draws large ones more often; crops and all else are drawn as they are of one. A broken
    image is skipped and named in a warning, and so is the first small one.

    Args:
        folder: tar shards.
        device: where crops are made.
        min_side: smaller photos are left out.
        workers: processes that decode; all cores by default.
        shuffled: photos that each worker holds to draw the next from.

    Raises:
        TrainingError: the folder holds no shard, webdataset is not installed, or no photo comes.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        min_side: int = 1,
        augmentation: Augmentation = Augmentation(),
        workers: int | None = None,
        shuffled: int = 500,
    ) -> None:
        wds = needed("webdataset")
        shards = [str(path) for path in sorted(Path(folder).glob("*.tar"))]
        if not shards:
            raise TrainingError(f"{folder}: no .tar shard to stream: put the photos in shards, or leave streaming out")
        if not any(map(_holds_a_photo, shards)):  # or they would be read for ever
            raise TrainingError(f"{folder}: no shard holds a photo to train on: name other shards")
        self.device, self.augmentation = torch.device(device), augmentation
        pipeline = wds.DataPipeline(
            wds.ResampledShards(shards), _named_files, wds.shuffle(shuffled), wds.map(decode_photo)
        )
        workers = os.cpu_count() if workers is None else workers
        over = multiprocessing.Event()
        init = partial(_leave_signals_to_the_run, over)
        decoded = iter(DataLoader(pipeline, batch_size=None, num_workers=workers, worker_init_fn=init))
        atexit.register(over.set)  # before what ends the workers, which was registered earlier
        self._photos = _whole_ones(decoded, min_side, folder)

    def crops(self, size: int, draws: Draws) -> Tensor:
        """Random crops (B,3,size,size) in [0,1], in channels-last memory, one of each of the next B photos."""
        photos = PackedPhotos([next(self._photos) for _ in range(len(draws))], self.device)
        return photos.crop(torch.arange(len(draws), device=self.device), size, draws, self.augmentation)


def _named_files(shards: Iterable[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the train split's pictures in the shards that come; of a damaged one, those before the damage.
    """
    for shard in shards:
        try:
            yield from files_of_shard(Path(shard["url"]), "train")
        except (TrainingError, OSError) as error:
            warnings.warn(str(error))


def _whole_ones(
    decoded: Iterable[tuple[str, np.ndarray | None]], min_side: int, folder: Path
) -> Iterator[np.ndarray]:
    """Pixels (H,W,3) uint8 of the photos that are whole and large enough; TrainingError if none comes for long. Of
    small ones, which come again and again, the first is named."""
    unfit, named_small = 0, False
    for name, pixels in decoded:
        if pixels is not None and min(pixels.shape[:2]) >= min_side:
            unfit = 0
            yield np.asarray(pixels)
            continue
        if pixels is None:
            name_skipped("broken images", [name])
        elif not named_small:
            warnings.warn(f"photos of less than {min_side} pixels a side are skipped, the first is {name}")
            named_small = True
        unfit += 1
        if unfit > 10_000:
            break
    raise TrainingError(f"{folder}: no whole photo of at least {min_side} pixels a side: name other shards")


def _holds_a_photo(shard: str) -> bool:
    try:
        return next(files_of_shard(Path(shard), "train"), None) is not None
    except TrainingError:
        return False


def _leave_signals_to_the_run(over: Event, worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and the SIGTERM of a batch system every one of a job: without workers
    the run could not end its step. When the run is over it ends them by SIGTERM itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if over.is_set() else None)


def open_photos(folder: Path, config: TrainConfig, device: torch.device) -> PhotoSet | StreamedPhotos:
    """The train split of a folder, held in memory or streamed, as the configuration wants it."""
    kind = StreamedPhotos if config.streaming else PhotoSet
    augmentation = Augmentation(config.transpose, config.downscale, config.jitter)
    return kind(folder, device=device, min_side=config.crop, augmentation=augmentation)
