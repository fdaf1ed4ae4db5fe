"""What a checkpoint costs: seconds to encode and decode a 768x512 image, parameters and kMAC per pixel of every part.

    python -m eval.speed --checkpoint tiny -o speed.json
    python -m eval.speed --random base

Times are medians after a warm-up, loading excluded. MACs are those of convolutions, matrix products and attention
(half the FLOPs that PyTorch counts). The probability networks run as float64 copies of hyper-synthesis, context model
and index prior, so they have a row of their own, without parameters; what runs outside every module, such as the
search for the nearest codeword, is the row `other`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import hybridflow
from hybridflow.codec import Codec
from hybridflow.errors import HybridFlowError
from hybridflow.image_io import read_image
from hybridflow.model import PRESETS, HybridFlow

PHOTO = Path(__file__).parent.parent / "tests" / "photos" / "kodim23.png"
PROBABILITY = "probability networks (float64)"


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median duration of `call`, in seconds, after one call that does not count."""
    durations = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations[1:])


def random_codec(preset: str) -> Codec:
    """A codec of this preset whose weights are not trained: it costs what a trained one does."""
    torch.manual_seed(0)
    model = HybridFlow(preset)
    model.update()
    return Codec(model, f"{preset}, random weights")


def stored_numbers(module: nn.Module) -> int:
    """Parameters, and buffers such as codewords and tables."""
    return sum(tensor.numel() for tensor in module.state_dict().values())


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""The one operator of ours that PyTorch's counter does not know."""


def count_macs(parts: dict[str, nn.Module], call: Callable[[], object]) -> dict[str, int]:
    """Run `call` -> MACs of each part, whichever of its modules are called, and of `other`."""
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    flops = dict.fromkeys(parts, 0)
    with ExitStack() as stack, counter:
        for name, part in parts.items():
            stack.enter_context(_attribute(part, name, counter, flops))
        call()
    flops["other"] = counter.get_total_flops() - sum(flops.values())
    return {name: count // 2 for name, count in flops.items()}


@contextmanager
def _attribute(part: nn.Module, name: str, counter: FlopCounterMode, flops: dict[str, int]) -> Iterator[None]:
    """Add to `flops[name]` what is counted while any of the part's modules runs; nested calls count once."""
    starts: list[int] = []

    def enter(*_) -> None:
        starts.append(counter.get_total_flops())

    def leave(*_) -> None:
        start = starts.pop()
        if not starts:
            flops[name] += counter.get_total_flops() - start

    with ExitStack() as stack:
        for module in part.modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield


def speed(codec: Codec, image: Image.Image, quality: int, schedule: str, repeats: int) -> dict:
    """Times, parameters and kMAC per pixel of one RGB image at one operating point."""
    encode = partial(codec.encode, image, quality=quality, schedule=schedule)
    decode = partial(codec.decode, encode())
    parts, pixels = dict(codec.model.named_children()), image.width * image.height
    running = parts | {PROBABILITY: codec.probability}
    encode_macs, decode_macs = count_macs(running, encode), count_macs(running, decode)
    costs = {
        name: {
            "parameters": stored_numbers(parts[name]) if name in parts else 0,
            "encode_kmac_per_pixel": encode_macs[name] / pixels / 1000,
            "decode_kmac_per_pixel": decode_macs[name] / pixels / 1000,
        }
        for name in encode_macs
    }
    costs["total"] = {figure: sum(cost[figure] for cost in costs.values()) for figure in costs["other"]}
    return {
        "name": codec.name,
        "model_id": str(codec.model_id),
        "width": image.width,
        "height": image.height,
        "point": f"{quality}:{schedule}",
        "threads": torch.get_num_threads(),
        "encode_seconds": median_seconds(encode, repeats),
        "decode_seconds": median_seconds(decode, repeats),
        "parts": costs,
    }


def print_table(result: dict) -> None:
    print(f"{result['name']}, {result['width']}x{result['height']} at {result['point']}, {result['threads']} threads:")
    print(f"encode {result['encode_seconds']:.3f} s, decode {result['decode_seconds']:.3f} s\n")
    print(f"{'part':<32}{'parameters':>12}{'encode kMAC/px':>16}{'decode kMAC/px':>16}")
    for name, cost in result["parts"].items():
        encode, decode = cost["encode_kmac_per_pixel"], cost["decode_kmac_per_pixel"]
        print(f"{name:<32}{cost['parameters']:>12,}{encode:>16.2f}{decode:>16.2f}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", default="tiny", help="a preset's name or a .safetensors file (%(default)s)")
    weights.add_argument("--random", choices=PRESETS, help="a preset with random weights")
    parser.add_argument("--quality", type=int, default=31, help="0..63 (%(default)s)")
    parser.add_argument("--schedule", default="1_4", help="mask schedule (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="take the median of N (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="CPU threads (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, metavar="JSON", help="also write the figures here")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    try:
        codec = random_codec(args.random) if args.random else hybridflow.load(args.checkpoint, device=args.device)
        result = speed(codec, read_image(PHOTO), args.quality, args.schedule, args.repeats)
    except HybridFlowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(result)
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
