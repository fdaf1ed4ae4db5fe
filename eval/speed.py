"""What a checkpoint costs: seconds to encode and decode a 768x512 image; time, parameters and kMAC per pixel by part.

    python -m eval.speed --checkpoint tiny -o speed.json
    python -m eval.speed --random base
    python -m eval.speed --threads 1 2 --megapixels 0.1 0.4 1 3 12 --against mbt2018-mean cheng2020-anchor

Times of the whole are medians after a warm-up, loading excluded; those of parts and of other sizes are of one call.
MACs are those of convolutions, matrix products and attention (half the FLOPs that PyTorch counts). The frozen
probability networks count with the parts they belong to; what runs outside every module, such as the entropy coder and
the search for the nearest codeword, is the row `other`. Parts and sizes are measured with the first of the numbers of
threads. CompressAI's codecs run in the same process, at quality 1, with random weights: their networks cost what
trained ones do, their entropy coders less, as they have little to code.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from compressai.zoo import cheng2020_anchor, mbt2018_mean
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import hybridflow
from eval import command
from eval.cost import cost_of
from eval.tables import aligned, cells_of
from hybridflow.checkpoint import released
from hybridflow.cli import positive, quality
from hybridflow.codec import Codec
from hybridflow.container import MAX_PIXELS
from hybridflow.image_io import image_to_tensor, read_image
from hybridflow.model import PRESETS, HybridFlow
from hybridflow.training.freeze import freeze

WAYS = ("encode", "decode")
PHOTO = Path(__file__).parent.parent / "tests" / "photos" / "kodim23.png"
PEERS = {"mbt2018-mean": mbt2018_mean, "cheng2020-anchor": cheng2020_anchor}


def median_seconds(call: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Median duration of `call`, in seconds, after one call that does not count."""
    return statistics.median([cost_of(call, device)[1].seconds for _ in range(repeats + 1)][1:])


def random_codec(preset: str, device: str) -> Codec:
    """A codec of this preset whose weights are not trained: it costs what a trained one does."""
    torch.manual_seed(0)
    model = HybridFlow(preset)
    freeze(model, torch.rand(1, 3, 64, 64))
    return Codec(model.to(device), f"{preset}, random weights")


def stored_numbers(module: nn.Module, prefix: str = "") -> int:
    """What a release holds of a module whose names start so: parameters, and buffers such as codewords and tables."""
    return sum(tensor.numel() for key, tensor in module.state_dict(prefix=prefix).items() if released(key))


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""The one operator of ours that PyTorch's counter does not know."""


def count_macs(parts: dict[str, nn.Module], call: Callable[[], object]) -> dict[str, int]:
    """Run `call` -> MACs of each part, whichever of its modules are called, and of `other`."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        flops = attribute(parts, call, counter.get_total_flops)
    return {name: count // 2 for name, count in flops.items()}


def part_seconds(parts: dict[str, nn.Module], call: Callable[[], object], device: str) -> dict[str, float]:
    """Run `call`, after a warm-up -> seconds of each part, and of `other`."""

    def clock() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    call()
    return attribute(parts, call, clock)


def attribute(parts: dict[str, nn.Module], call: Callable[[], object], read: Callable[[], float]) -> dict[str, float]:
    """Run `call` -> by how much a meter rises in each part, whichever of its modules are called, and in `other`."""
    totals: dict[str, float] = dict.fromkeys(parts, 0)
    with ExitStack() as stack:
        for name, part in parts.items():
            stack.enter_context(_attribute(part, name, read, totals))
        start = read()
        call()
        totals["other"] = read() - start - sum(totals.values())
    return totals


@contextmanager
def _attribute(part: nn.Module, name: str, read: Callable[[], float], totals: dict[str, float]) -> Iterator[None]:
    """Add to `totals[name]` what is read while any of the part's modules runs; nested calls count once."""
    starts: list[float] = []

    def enter(*_) -> None:
        starts.append(read())

    def leave(*_) -> None:
        start = starts.pop()
        if not starts:
            totals[name] += read() - start

    with ExitStack() as stack:
        for module in part.modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield


def speed(codec: Codec, image: Image.Image, quality: int, schedule: str, repeats: int, device: str = "cpu") -> dict:
    """Times, parameters and kMAC per pixel of one RGB image at one operating point."""
    encode = partial(codec.encode, image, quality=quality, schedule=schedule)
    decode = partial(codec.decode, encode())
    parts, pixels = dict(codec.model.named_children()), image.width * image.height
    macs = {"encode": count_macs(parts, encode), "decode": count_macs(parts, decode)}
    seconds = {"encode": part_seconds(parts, encode, device), "decode": part_seconds(parts, decode, device)}
    costs = {
        name: {"parameters": stored_numbers(parts[name], f"{name}.") if name in parts else 0}
        | {f"{way}_kmac_per_pixel": macs[way][name] / pixels / 1000 for way in macs}
        | {f"{way}_ms": 1000 * seconds[way][name] for way in seconds}
        for name in macs["encode"]
    }
    costs["total"] = {figure: sum(cost[figure] for cost in costs.values()) for figure in costs["other"]}
    return {
        "name": codec.name,
        "model_id": str(codec.model_id),
        "width": image.width,
        "height": image.height,
        "point": f"{quality}:{schedule}",
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "encode_seconds": median_seconds(encode, repeats, device),
        "decode_seconds": median_seconds(decode, repeats, device),
        "parts": costs,
    }


def by_size(
    codec: Codec, image: Image.Image, megapixels: list[float], point: tuple[int, str], device: str
) -> list[dict]:
    """Seconds and peak memory of one call, after a small warm-up, for the image repeated to sizes in megapixels."""
    rows = []
    codec.decode(codec.encode(image.crop((0, 0, 64, 64)), quality=point[0], schedule=point[1]))
    for size in megapixels:
        sides = [max(1, round(side * math.sqrt(1e6 * size / (image.width * image.height)))) for side in image.size]
        larger = tiled(image, *sides)
        data, encoding = cost_of(partial(codec.encode, larger, quality=point[0], schedule=point[1]), device)
        _, decoding = cost_of(partial(codec.decode, data), device)
        rows.append(
            {
                "width": larger.width,
                "height": larger.height,
                "encode_seconds": encoding.seconds,
                "decode_seconds": decoding.seconds,
                "encode_mib": encoding.mib,
                "decode_mib": decoding.mib,
            }
        )
    return rows


def megapixels(text: str) -> float:
    """An argument's type: the size of an image that can be encoded."""
    size = positive(float)(text)
    if 1e6 * size > MAX_PIXELS:
        most = MAX_PIXELS // 10**6
        raise argparse.ArgumentTypeError(f"{text} megapixels are too many to encode: give {most} at most")
    return size


def tiled(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image repeated to this size: detail stays that of a photo."""
    whole = Image.new("RGB", (width, height))
    for left in range(0, width, image.width):
        for top in range(0, height, image.height):
            whole.paste(image, (left, top))
    return whole


def growth(rows: list[dict], figure: str) -> float:
    """The power of the pixels with which a figure grows, from the smallest to the largest size: 1 is linear."""
    pixels, figures = zip(*((row["width"] * row["height"], row[figure]) for row in (rows[0], rows[-1])))
    return math.log(figures[1] / figures[0]) / math.log(pixels[1] / pixels[0])


@torch.inference_mode()
def peer_seconds(name: str, image: Image.Image, repeats: int, device: str) -> dict[str, float]:
    """Seconds of one of CompressAI's codecs, with random weights, for an image whose sides are multiples of 64."""
    torch.manual_seed(0)
    model = PEERS[name](quality=1, pretrained=False).eval().to(device)
    model.update(force=True)
    x = image_to_tensor(image).to(device)
    compressed = model.compress(x)
    return {
        "encode_seconds": median_seconds(partial(model.compress, x), repeats, device),
        "decode_seconds": median_seconds(lambda: model.decompress(**compressed), repeats, device),
    }


def against(
    codec: Codec,
    image: Image.Image,
    point: tuple[int, str],
    names: list[str],
    threads: list[int],
    repeats: int,
    device: str,
) -> list[dict]:
    """Seconds of ours and of others at every number of threads, and how many times ours the others take."""
    rows = []
    encode = partial(codec.encode, image, quality=point[0], schedule=point[1])
    decode = partial(codec.decode, encode())
    for count in threads:
        torch.set_num_threads(count)
        ours = {
            "encode_seconds": median_seconds(encode, repeats, device),
            "decode_seconds": median_seconds(decode, repeats, device),
        }
        theirs = {name: peer_seconds(name, image, repeats, device) for name in names}
        for name, seconds in ({codec.name: ours} | theirs).items():
            ratios = {f"{way}_ratio": seconds[f"{way}_seconds"] / ours[f"{way}_seconds"] for way in WAYS}
            rows.append({"codec": name, "threads": count} | seconds | ratios)
    return rows


def print_tables(result: dict) -> None:
    print(f"{result['name']}, {result['width']}x{result['height']} at {result['point']}, {result['threads']} threads:")
    print(f"encode {result['encode_seconds']:.3f} s, decode {result['decode_seconds']:.3f} s\n")
    total = result["parts"]["total"]
    titles, rows = ["part", "parameters"], [[name, f"{cost['parameters']:,}"] for name, cost in result["parts"].items()]
    for way in WAYS:
        titles += [f"{way} kMAC/px", f"{way} ms", "share"]
        for row, cost in zip(rows, result["parts"].values()):
            ms = cost[f"{way}_ms"]
            row += [f"{cost[f'{way}_kmac_per_pixel']:.2f}", f"{ms:.1f}", f"{ms / total[f'{way}_ms']:.1%}"]
    print(aligned(titles, rows))
    for table in ("sizes", "against"):
        if result[table]:
            print(f"\n{aligned(*cells_of(result[table]))}")
    for figure, power in result["growth"].items():
        print(f"{figure} grows with the pixels to the power of {power:.2f}")


@command.one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = command.parser("speed", __doc__)
    weights = parser.add_mutually_exclusive_group()
    command.add_checkpoint(weights)
    weights.add_argument("--random", choices=PRESETS, help="a preset with random weights")
    parser.add_argument("--quality", type=quality, default=31, help="0..63 (%(default)s)")
    parser.add_argument("--schedule", default="1_4", help="mask schedule (%(default)s)")
    parser.add_argument("--repeats", type=positive(int), default=5, metavar="N", help="take the median (%(default)s)")
    parser.add_argument("--threads", type=positive(int), nargs="+", default=[2], metavar="N", help="CPU threads (2)")
    parser.add_argument(
        "--megapixels", type=megapixels, nargs="+", default=[], metavar="MP", help="also of photos of such sizes"
    )
    parser.add_argument("--against", nargs="+", choices=PEERS, default=[], help="also CompressAI's codecs")
    command.add_device(parser)
    parser.add_argument(
        "-o", "--output", type=command.file_to_write, metavar="JSON", help="also write the figures here"
    )
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads[0])
    point = args.quality, args.schedule
    codec = (
        random_codec(args.random, args.device)
        if args.random
        else hybridflow.load(args.checkpoint, device=args.device)
    )
    image = read_image(PHOTO)
    result = speed(codec, image, *point, args.repeats, args.device)
    result["sizes"] = by_size(codec, image, sorted(args.megapixels), point, args.device)
    result["against"] = []
    if args.against or len(args.threads) > 1:
        result["against"] = against(codec, image, point, args.against, args.threads, args.repeats, args.device)
    sizes = {row["width"] * row["height"] for row in result["sizes"]}
    figures = ("encode_seconds", "decode_seconds", "encode_mib", "decode_mib") if len(sizes) > 1 else ()
    known = [figure for figure in figures if all((row[figure] or 0) > 0 for row in result["sizes"])]
    result["growth"] = {figure: growth(result["sizes"], figure) for figure in known}
    print_tables(result)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
