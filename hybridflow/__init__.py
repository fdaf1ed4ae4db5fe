"""HybridFlow: extreme low-bitrate image compression with a masked codebook and a continuous stream.

    codec = hybridflow.load()
    data = codec.encode("photo.jpg", bpp=0.03)
    codec.decode(data).save("photo.png")
"""

from importlib import import_module

from hybridflow.errors import HybridFlowError

__version__ = "0.1.0"
__all__ = ["Codec", "HybridFlowError", "available", "load"]


def __getattr__(name: str):
    if name in __all__:  # on first use, since it takes torch
        return getattr(import_module("hybridflow.codec"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
