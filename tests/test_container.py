"""The .hf file: round trips, its exact bytes, and one clear line for everything that is not a whole file."""

import zlib

import numpy as np
import pytest

from hybridflow.container import MAX_PIXELS, Header, checksum16, pack, too_large, unpack
from hybridflow.errors import FormatError
from hybridflow.masking import SCHEDULES

KODAK = Header(768, 512, 31, "1_4", b"\x01\x02\x03")


def with_crc(body):
    return body + zlib.crc32(body).to_bytes(4, "big")


@pytest.mark.parametrize("width, height", [(1, 1), (256, 257), (768, 512), (40, 4096), (4097, 1), (65536, 1000)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_round_trip(width, height, schedule):
    for quality in (0, 63):
        header = Header(width, height, quality, schedule, b"abc")
        for stream in (b"", b"\x00", b"stream"):
            assert unpack(pack(header, stream)) == (header, stream)


def test_the_bytes_of_a_kodak_header():
    assert KODAK.pack() == b"H\x99" + b"\x01\x02\x03" + b"\x5f" + b"\x2f\xf1\xff"
    assert pack(KODAK, b"S") == with_crc(KODAK.pack() + b"S")
    assert Header(1, 1, 0, "full", b"abc").pack() == b"H\x98abc\0\0\0"


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "empty"),
        (b"hello, I am a text file\n", "not an .hf file"),
        (b"Hello", "not an .hf file"),
        (b"H", "ends within its header: get"),
        (b"H\x98", "cut or damaged"),
        (b"H\xa0" + pack(KODAK, b"x")[2:], "update hybridflow"),
        (pack(KODAK, b"stream")[:-1], "cut or damaged"),
        (with_crc(b"H\x98abc"), "ends within its header: get"),
        (with_crc(KODAK.pack()[:-1]), "ends within its header: get"),
        (with_crc(b"H\x9dabc" + b"\0\0\0"), "does not exist"),
        (with_crc(b"H\x98abc" + b"\x40\0\0\xff"), "more bits than they need"),
        (pack(Header(2**32, 2**32, 0, "full", b"abc"), b""), "over the limit"),
    ],
)
def test_each_fault_has_its_line(data, words):
    with pytest.raises(FormatError, match=words) as error:
        unpack(data)
    assert "\n" not in str(error.value)


def test_every_cut_and_every_flipped_bit_is_found():
    data = pack(KODAK, bytes(range(40)))
    for length in range(len(data)):
        with pytest.raises(FormatError):
            unpack(data[:length])
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            unpack(bytes(flipped))


def test_unchecked_reading_takes_what_is_there():
    data = pack(KODAK, b"a longer stream")
    assert unpack(data, check=False) == (KODAK, b"a longer stream")
    assert unpack(data[:13], check=False) == (KODAK, b"a lo")
    assert unpack(KODAK.pack(), check=False) == (KODAK, b"")
    with pytest.raises(FormatError, match="ends within its header: get it again from its source$"):
        unpack(KODAK.pack()[:-1], check=False)  # of which nothing can be salvaged


def test_hostile_bytes_never_crash():
    rng = np.random.default_rng(0)
    for n in rng.integers(0, 30, 2000):
        for data in (b"H\x98" + rng.bytes(int(n)), with_crc(b"H\x98" + rng.bytes(int(n)))):
            try:
                header, _ = unpack(data, check=False)
                assert header.width * header.height <= MAX_PIXELS
            except FormatError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("width, height, fits", [(8192, 8192, True), (8193, 1, True), (8193, 8192, False)])
def test_the_limit_counts_what_is_worked_on(width, height, fits):
    """The hyper-latent of a line of pixels takes as much as that of 64 lines."""
    assert too_large(width, height) == (not fits)
    assert not too_large(MAX_PIXELS // 64, 1) and too_large(MAX_PIXELS // 64 + 1, 1)
    data = pack(Header(MAX_PIXELS // 64 + 1, 1, 0, "none", b"abc"), b"")
    with pytest.raises(FormatError, match="over the limit"):
        unpack(data)


@pytest.mark.parametrize(
    "fields",
    [
        (0, 1, 0, "full", b"abc"),
        (1, 2**32 + 1, 0, "full", b"abc"),
        (1, 1, 64, "full", b"abc"),
        (1, 1, -1, "full", b"abc"),
        (1, 1, 0, "half", b"abc"),
        (1, 1, 0, "full", b"a"),
    ],
)
def test_a_header_holds_only_what_exists(fields):
    with pytest.raises(FormatError):
        Header(*fields)


def test_checksum16_is_the_catalogued_crc():
    assert checksum16(b"123456789") == 0x29B1


def test_a_file_of_an_older_version_wants_an_older_release():
    data = pack(Header(768, 512, 31, "1_4", b"abc"), b"x")
    for version, words in ((2, "release that wrote it"), (0, "release that wrote it"), (4, "update hybridflow")):
        with pytest.raises(FormatError, match=words):
            unpack(bytes([data[0], 0x80 + 8 * version]) + data[2:])


@pytest.mark.parametrize("text", ["Hé là", "Hôtel", "H\u20ac", "Hey"])
def test_a_text_is_no_file_of_a_newer_version(text):
    with pytest.raises(FormatError, match="not an .hf file"):
        unpack(text.encode())
