"""`.hf` files in Pillow, once this module is imported:

    import hybridflow.pillow_plugin

    Image.open("photo.jpg").save("photo.hf", bpp=0.03)
    Image.open("photo.hf").show()

`save` takes what `Codec.encode` does, `quality` from 0 to 63, and `preset`; if it refuses them, Pillow has emptied a
file that was there. Where no name tells the format, it is "HYBRIDFLOW". `open` reads the size alone; pixels are
decoded, by the shipped weights that made the file, when they are first asked for.
"""

import functools
from typing import IO, Any

from PIL import Image, ImageFile

from hybridflow.codec import load, maker
from hybridflow.container import looks_like_file, unpack
from hybridflow.weights import DEFAULT

FORMAT = "HYBRIDFLOW"
ENCODING = ("quality", "schedule", "bpp", "max_bytes", "effort")

_codec = functools.cache(load)


class HybridFlowImageFile(ImageFile.ImageFile):
    """What `Image.open` makes of a file.

    Raises:
        FormatError: the file is cut or damaged.
        ModelMismatchError: on load, a checkpoint of one's own made it: decode it with `hybridflow.load`.
    """

    format, format_description = FORMAT, "HybridFlow"
    _coded: bytes | None = None
    """Until it is decoded; what was pickled was."""

    def _open(self) -> None:
        self._coded = self.fp.read()
        self._header, _ = unpack(self._coded)
        self._size, self._mode = (self._header.width, self._header.height), "RGB"

    def load(self) -> Any:
        if self._coded is not None:
            self.im = _codec(maker(self._header) or DEFAULT).decode(self._coded).im
            self._coded = None
            if self._exclusive_fp and self.fp:  # Pillow opened it, and closes only what it read the pixels of itself
                self.fp.close()
            self.fp = None
        return super().load()


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    options = image.encoderinfo
    chosen = {name: options[name] for name in ENCODING if name in options}
    file.write(_codec(options.get("preset", DEFAULT)).encode(image, **chosen))


Image.register_open(FORMAT, HybridFlowImageFile, lambda prefix: len(prefix) > 1 and looks_like_file(prefix))
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".hf")
Image.register_mime(FORMAT, "image/x-hybridflow")
