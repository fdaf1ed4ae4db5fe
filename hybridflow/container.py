"""The ``.hf`` file: what surrounds the range-coded stream.

=======  ====================================================================
bytes    content
=======  ====================================================================
1        ``H``
1        0x80 + 8 x version of the format (3) + mask schedule (its place in ``hybridflow.masking.SCHEDULES``)
3        model id: which integer networks, tables, gains and codebook made the bits
1        64 x the place in (8, 12, 16, 32) of the bits that each side takes, the fewest that do, + quality (0 to 63)
2,3,4,8  width - 1, then height - 1, in so many bits each, big-endian
n        the stream of :mod:`hybridflow.entropy`
4        CRC-32 (that of zlib) of all bytes before it, big-endian
=======  ====================================================================
"""

import binascii
import math
import zlib
from dataclasses import dataclass
from numbers import Integral

from hybridflow.errors import FormatError, HybridFlowError

VERSION = 3
QUALITIES = 64
MAX_PIXELS = 2**26
"""Of the largest image that is encoded or decoded, its sides rounded up to multiples of 64: so much is worked on."""

_FAMILY = range(0x80, 0xC0)
"""The second byte of a file of any version, 0 to 7: none that follows an H in a text in UTF-8."""
_ID_BYTES = 3
_SIDE_BITS = (8, 12, 16, 32)
_CRC_BYTES = 4
_CUT = "the file is cut or damaged: get it again, or decode what is left of it (--salvage, in Python salvage=True)"
_CUT_EARLY = "the file ends within its header: get it again from its source"


def require_quality(quality: int) -> int:
    """A quality as it is, if it is one; else HybridFlowError."""
    if not isinstance(quality, Integral):
        raise HybridFlowError(f"quality must be a whole number, not {quality!r}")
    if not 0 <= quality < QUALITIES:
        raise HybridFlowError(f"quality must be 0 to {QUALITIES - 1}, not {quality}")
    return int(quality)


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        width, height: of the image in pixels, at least 1.
        quality: 0 to 63.
        schedule: a name of ``hybridflow.masking.SCHEDULES``.
        model_id: 3 bytes.

    Raises:
        FormatError: a field is out of its range.
    """

    width: int
    height: int
    quality: int
    schedule: str
    model_id: bytes

    def __post_init__(self) -> None:
        if not (1 <= self.width <= 2**32 and 1 <= self.height <= 2**32):
            raise FormatError(f"no image has {self.width} x {self.height} pixels: give a size of at least 1 x 1")
        if not 0 <= self.quality < QUALITIES:
            raise FormatError(f"there is no quality {self.quality}: choose 0 to {QUALITIES - 1}")
        if self.schedule not in _schedules():
            raise FormatError(f"there is no schedule {self.schedule!r}: choose one of {', '.join(_schedules())}")
        if len(self.model_id) != _ID_BYTES:
            raise FormatError(f"a model id has {_ID_BYTES} bytes, not {len(self.model_id)}: take that of a codec")

    def pack(self) -> bytes:
        """The header's bytes, magic and version included."""
        side = next(i for i, bits in enumerate(_SIDE_BITS) if max(self.width, self.height) <= 1 << bits)
        sides = (self.width - 1 << _SIDE_BITS[side]) + self.height - 1
        return (
            bytes([ord("H"), _FAMILY.start + 8 * VERSION + _schedules().index(self.schedule)])
            + self.model_id
            + bytes([QUALITIES * side + self.quality])
            + sides.to_bytes(_SIDE_BITS[side] // 4, "big")
        )


def pack(header: Header, stream: bytes) -> bytes:
    """The whole file: header, stream, CRC."""
    body = header.pack() + stream
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES, "big")


def unpack(data: bytes, *, check: bool = True) -> tuple[Header, bytes]:
    """Take a file apart; nothing is allocated by what it declares.

    Args:
        data: the file's bytes, whoever made them.
        check: refuse a file whose CRC does not match. Without it, a cut or damaged file passes as long as its header is
            whole, and all that follows the header is taken for the stream.

    Returns:
        The header and the stream's bytes.

    Raises:
        FormatError: empty, foreign, of a newer version, cut, damaged or too large, each with its own line.
    """
    if not data:
        raise FormatError("the file is empty: encode the image again")
    if not looks_like_file(data):
        raise FormatError("this is not an .hf file: give one that `hybridflow encode` wrote")
    if len(data) < 2:
        raise FormatError(_CUT_EARLY)
    version = (data[1] - _FAMILY.start) // 8
    if version != VERSION:
        mend = "update hybridflow" if version > VERSION else "decode it with the release that wrote it"
        raise FormatError(f"the file has format version {version}, this program reads {VERSION}: {mend}")
    whole = int.from_bytes(data[-_CRC_BYTES:], "big") == zlib.crc32(data[:-_CRC_BYTES])
    if check and not whole:
        raise FormatError(_CUT)
    body = data[:-_CRC_BYTES] if whole else data
    header, start = _parse_header(body)
    if too_large(header.width, header.height):
        size = f"{header.width} x {header.height} pixels, over the limit of {MAX_PIXELS}, sides counted in steps of 64"
        raise FormatError(f"the file declares {size}: encode the image in smaller pieces")
    return header, body[start:]


def too_large(width: int, height: int) -> bool:
    """Whether an image of so many pixels is over `MAX_PIXELS`."""
    return math.prod(64 * math.ceil(side / 64) for side in (width, height)) > MAX_PIXELS


def looks_like_file(data: bytes) -> bool:
    """Whether bytes start as an `.hf` file of any version does, as far as they go."""
    return data[:1] == b"H" and (len(data) < 2 or data[1] in _FAMILY)


def checksum16(data: bytes) -> int:
    """CRC-16/IBM-3740 (polynomial 0x1021, start 0xFFFF), 0 to 65535: the check inside the stream."""
    return binascii.crc_hqx(data, 0xFFFF)


def _schedules() -> tuple[str, ...]:
    from hybridflow.masking import SCHEDULES  # here, since masking takes torch, which reading a header can do without

    return SCHEDULES


def _parse_header(data: bytes) -> tuple[Header, int]:
    """The header and the offset at which the stream starts."""
    sides = 3 + _ID_BYTES
    if len(data) < sides:
        raise FormatError(_CUT_EARLY)
    side, quality = divmod(data[sides - 1], QUALITIES)
    start = sides + _SIDE_BITS[side] // 4
    if len(data) < start:
        raise FormatError(_CUT_EARLY)
    width, height = divmod(int.from_bytes(data[sides:start], "big"), 1 << _SIDE_BITS[side])
    schedule = data[1] % 8
    if schedule >= len(_schedules()):
        raise FormatError("the header names a schedule that does not exist: encode the image again")
    header = Header(width + 1, height + 1, quality, _schedules()[schedule], bytes(data[2 : 2 + _ID_BYTES]))
    if header.pack() != data[:start]:
        raise FormatError("the header gives its sides more bits than they need: encode the image again")
    return header, start
