"""Where networks run, and where in bfloat16: a processor that emulates it is up to 70 times slower than in float32."""

import torch

from hybridflow.errors import HybridFlowError


def require_device(device: str) -> None:
    """Raise HybridFlowError unless networks can run on "cpu", or on "cuda", here."""
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise HybridFlowError(f"networks do not run on {device!r}: choose cpu or cuda")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise HybridFlowError("there is no GPU here that PyTorch can use: choose device cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise HybridFlowError(f"there is no {device} here: choose one of {torch.cuda.device_count()} GPUs, from cuda:0")


def computes_in_bfloat16(device: str) -> bool:
    """Whether this machine's "cpu" or "cuda" multiplies in bfloat16 by itself."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, bf16: bool = True) -> torch.autocast:
    """Autocast to bfloat16 where it is wanted and the device computes in it; else networks stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and computes_in_bfloat16(device.type))
