"""The ``.hf`` file: what surrounds the range-coded stream.

=====  ======================================================================
bytes  content
=====  ======================================================================
2      ``H``, then 0xF0 + version of the format (1)
3      model id: which integer networks, tables, gains and codebook made the bits
1-5    width - 1 as LEB128 (7 bits a byte, lowest first, high bit set on all but the last)
1-5    height - 1, likewise
1      quality, 0 to 63
1      mask schedule: its place in ``hybridflow.masking.SCHEDULES``
n      the stream of :mod:`hybridflow.entropy`
4      CRC-32 (that of zlib) of all bytes before it, big-endian
=====  ======================================================================
"""

import binascii
import zlib
from dataclasses import dataclass

from hybridflow.errors import FormatError

VERSION = 1
QUALITIES = 64
MAX_PIXELS = 2**26
"""Largest image, in pixels, that is encoded or decoded unless the caller says otherwise."""

_FAMILY = 0xF0
_ID_BYTES = 3
_CRC_BYTES = 4
_CUT = "the file is cut or damaged: get it again from its source, or decode what is left of it with --salvage"


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
            raise FormatError(f"a model id has {_ID_BYTES} bytes, not {len(self.model_id)}")

    def pack(self) -> bytes:
        """The header's bytes, magic and version included."""
        return (
            bytes([ord("H"), _FAMILY + VERSION])
            + self.model_id
            + _varint(self.width - 1)
            + _varint(self.height - 1)
            + bytes([self.quality, _schedules().index(self.schedule)])
        )


def pack(header: Header, stream: bytes) -> bytes:
    """The whole file: header, stream, CRC."""
    body = header.pack() + stream
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES, "big")


def unpack(data: bytes, *, check: bool = True, max_pixels: int = MAX_PIXELS) -> tuple[Header, bytes]:
    """Take a file apart; nothing is allocated by what it declares.

    Args:
        data: the file's bytes, whoever made them.
        check: refuse a file whose CRC does not match. Without it, a cut or damaged file passes as long as its header is
            whole, and all that follows the header is taken for the stream.
        max_pixels: refuse a larger declared size.

    Returns:
        The header and the stream's bytes.

    Raises:
        FormatError: empty, foreign, of a newer version, cut, damaged or too large, each with its own line.
    """
    if not data:
        raise FormatError("the file is empty: encode the image again")
    if data[:1] != b"H" or data[1:2] and data[1] & 0xF0 != _FAMILY:
        raise FormatError("this is not an .hf file: give one that `hybridflow encode` wrote")
    if len(data) < 2:
        raise FormatError(_CUT)
    if data[1] != _FAMILY + VERSION:
        raise FormatError(
            f"the file has format version {data[1] - _FAMILY}, this program reads {VERSION}: update hybridflow"
        )
    whole = int.from_bytes(data[-_CRC_BYTES:], "big") == zlib.crc32(data[:-_CRC_BYTES])
    if check and not whole:
        raise FormatError(_CUT)
    header, start = _parse_header(data)
    if header.width * header.height > max_pixels:
        raise FormatError(
            f"the file declares {header.width} x {header.height} pixels, over the limit of {max_pixels}: "
            "if you trust it, raise the limit (max_pixels)"
        )
    return header, data[start : -_CRC_BYTES if whole else None]


def checksum16(data: bytes) -> int:
    """CRC-16/IBM-3740 (polynomial 0x1021, start 0xFFFF), 0 to 65535: the check inside the stream."""
    return binascii.crc_hqx(data, 0xFFFF)


def _schedules() -> tuple[str, ...]:
    from hybridflow.masking import SCHEDULES  # here, since masking takes torch, which reading a header can do without

    return SCHEDULES


def _parse_header(data: bytes) -> tuple[Header, int]:
    """The header and the offset at which the stream starts."""
    start = 2 + _ID_BYTES
    width, start = _read_varint(data, start)
    height, start = _read_varint(data, start)
    if len(data) < start + 2:
        raise FormatError(_CUT)
    quality, schedule = data[start], data[start + 1]
    if quality >= QUALITIES or schedule >= len(_schedules()):
        raise FormatError("the header names a quality or schedule that does not exist: encode the image again")
    model_id = bytes(data[2 : 2 + _ID_BYTES])
    return Header(width + 1, height + 1, quality, _schedules()[schedule], model_id), start + 2


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """A LEB128 number below 2**32 and the offset behind it."""
    value = 0
    for i, byte in enumerate(data[start : start + 5]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if value >= 2**32:
                break
            return value, start + i + 1
    raise FormatError(_CUT)
