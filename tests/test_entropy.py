"""The range coder: exact round trips, exact lengths, the documented arithmetic, and hostile bytes."""

import numpy as np
import pytest

from hybridflow.entropy import PRECISION, WEIGHT_BITS, Decoder, Encoder, share_counts
from hybridflow.errors import FormatError


def table_of(probabilities):
    return share_counts(np.rint(np.asarray(probabilities, dtype=float) * 2**36).astype(np.int64))


def random_tables(rng, n, size):
    return table_of(rng.dirichlet(np.full(size, 0.2), n))


def draw(rng, counts):
    """One symbol a row, by the row's own probabilities."""
    return (rng.integers(0, 2**PRECISION, (len(counts), 1)) >= np.cumsum(counts, axis=1)).sum(axis=1)


class DocumentedCoder:
    """The encoder written from the docstring of hybridflow.entropy alone, in plain Python integers."""

    def __init__(self):
        self.low, self.range, self.words = 0, 2**64 - 1, 0

    def _interval(self, start, end):
        step = self.range >> 24
        self.low, self.range = self.low + step * start, step * (end - start)
        if self.range < 2**32:
            self.low, self.range, self.words = self.low << 32, self.range << 32, self.words + 1

    def symbol(self, k, counts):
        size, sums = len(counts), [0, *np.cumsum(counts).tolist()]
        bounds = [c * (2**24 - size) // 2**PRECISION + i for i, c in enumerate(sums[:-1])] + [2**24]
        self._interval(bounds[k], bounds[k + 1])

    def uniform(self, value, bits):
        self._interval(value << 24 - bits, (value + 1) << 24 - bits)

    def accepts(self, data):
        """Whether data, continued by zero bytes, lies in the final interval."""
        value = int.from_bytes(data, "big") << 32 * self.words + 64 - 8 * len(data)
        return self.low <= value < self.low + self.range

    def shortest(self):
        """Length of the shortest string of bytes that would do."""
        total = 32 * self.words + 64
        return next(
            length
            for length in range(max(0, 4 * self.words - 8), total // 8 + 1)
            if -(-self.low >> total - 8 * length) << total - 8 * length < self.low + self.range
        )


def test_share_counts_gives_whole_tables():
    rng = np.random.default_rng(0)
    for size in (2, 3, 66, 1024):
        pmf = rng.dirichlet(np.full(size, 0.05), 50)
        weights = np.rint(pmf * 2**WEIGHT_BITS).astype(np.int64)
        counts = share_counts(weights)
        assert counts.dtype == np.int64 and counts.min() >= 1
        assert (counts.sum(axis=1) == 2**PRECISION).all()
        assert np.abs(counts / 2**PRECISION - pmf).max() <= 2 * size / 2**PRECISION
        assert (share_counts(weights[7]) == counts[7]).all()
        assert (share_counts(weights.T.copy().T) == counts).all()


def test_share_counts_by_hand():
    assert share_counts(np.array([0, 1])).tolist() == [1, 2**PRECISION - 1]
    assert share_counts(np.full(2, 2**WEIGHT_BITS)).tolist() == [2**19, 2**19]
    assert share_counts(np.ones(3, int)).tolist() == [349526, 349525, 349525]
    assert (share_counts(np.ones(2**PRECISION, int)) == 1).all()
    assert share_counts(np.array([2**WEIGHT_BITS - 1, 2**WEIGHT_BITS, 5], np.int64)).tolist() == [524288, 524287, 1]
    assert share_counts(np.zeros((0, 4), int)).shape == (0, 4)


@pytest.mark.parametrize("bad", [[0, 0], [1, -1], [0.5, 0.5], [1, 2**WEIGHT_BITS + 1], [1], [[1, 1], [0, 0]]])
def test_share_counts_refuses(bad):
    with pytest.raises(ValueError):
        share_counts(np.array(bad))


def test_tables_of_any_memory_layout_code_alike():
    rng = np.random.default_rng(6)
    counts = random_tables(rng, 30, 9)
    symbols = draw(rng, counts)
    streams = []
    for table in (counts, np.asfortranarray(counts)):
        encoder = Encoder()
        encoder.encode(symbols, table)
        streams.append(encoder.finish())
    assert streams[0] == streams[1]
    assert (Decoder(streams[0]).decode(30, np.asfortranarray(counts)) == symbols).all()


def test_streams_round_trip_and_are_the_shortest():
    rng = np.random.default_rng(1)
    overhead = []
    for n in [0, 1, 1, 1, 2, 3, 5, 8, 20, 100, 1000] * 20:
        counts = random_tables(rng, n, int(rng.integers(2, 40)))
        symbols = draw(rng, counts)
        encoder = Encoder()
        encoder.encode(symbols, counts)
        data = encoder.finish()
        decoder = Decoder(data)
        assert (decoder.decode(n, counts) == symbols).all()
        assert encoder.bits == pytest.approx(-np.log2(counts[range(n), symbols] / 2**PRECISION).sum(), abs=1e-6)
        overhead.append(len(data) - encoder.bits / 8)
        reference = DocumentedCoder()
        for symbol, row in zip(symbols.tolist(), counts):
            reference.symbol(symbol, row)
        assert reference.accepts(data) and len(data) == reference.shortest()
    assert np.mean(overhead) < 1 and max(overhead) < 1.01


def test_mixed_sections_round_trip():
    rng = np.random.default_rng(2)
    shared, signed = random_tables(rng, 1, 9)[0], random_tables(rng, 1, 12)[0]
    rows, signed_rows = random_tables(rng, 50, 30), random_tables(rng, 50, 6)
    symbols, row_symbols = rng.integers(0, 9, 200), draw(rng, rows)
    values, row_values = rng.integers(-9, 10, 300), rng.integers(-4, 5, 50)

    encoder = Encoder()
    encoder.encode(symbols, shared)
    encoder.encode_uniform(0xBEEF, 16)
    encoder.encode_signed(values, signed)
    encoder.encode(row_symbols, rows)
    encoder.encode_uniform(123456789012, 37)
    encoder.encode_signed(row_values, signed_rows)
    data = encoder.finish()
    assert data == encoder.finish() and abs(len(data) - encoder.bits / 8) < 1.01

    decoder = Decoder(data)
    assert (decoder.decode(200, shared) == symbols).all()
    assert decoder.decode_uniform(16) == 0xBEEF
    assert (decoder.decode_signed(300, signed) == values).all()
    assert (decoder.decode(50, rows) == row_symbols).all()
    assert decoder.decode_uniform(37) == 123456789012
    assert (decoder.decode_signed(50, signed_rows) == row_values).all()
    assert decoder.bits == pytest.approx(encoder.bits)


def test_every_integer_has_a_code():
    table = table_of([1, 4, 1, 1e-9])
    values = np.array([0, 1, -1, 2, -2, 3, -3, 100, -(2**31), 2**31, 2**48 - 1, 1 - 2**48])
    encoder = Encoder()
    encoder.encode_signed(values, table)
    assert (Decoder(encoder.finish()).decode_signed(len(values), table) == values).all()
    with pytest.raises(ValueError):
        encoder.encode_signed(np.array([2**49]), table)


def test_a_table_of_zero_and_escape_only():
    table = table_of([9.0, 1.0])
    encoder = Encoder()
    encoder.encode_signed(np.array([0, 0, -7, 0]), table)
    assert Decoder(encoder.finish()).decode_signed(4, table).tolist() == [0, 0, -7, 0]


def test_uniform_values_cost_their_bits_and_follow_the_documented_arithmetic():
    encoder, reference = Encoder(), DocumentedCoder()
    for value, bits in [(0, 0), (1, 1), (5, 3), (65535, 16), (0, 16)]:
        encoder.encode_uniform(value, bits)
        if bits:
            reference.uniform(value, bits)
    assert encoder.bits == 36 and reference.accepts(encoder.finish())
    with pytest.raises(ValueError):
        encoder.encode_uniform(4, 2)


def test_nothing_costs_nothing():
    encoder = Encoder()
    encoder.encode(np.zeros(0, int), np.zeros((0, 5), int))
    encoder.encode_signed(np.zeros(0, int), table_of(np.ones(4)))
    assert encoder.finish() == b"" and encoder.bits == 0
    assert Decoder(b"").decode(0, np.zeros((0, 5), int)).shape == (0,)


def test_symbols_outside_their_table_are_refused():
    for symbol in (-1, 4):
        with pytest.raises((KeyError, ValueError)):
            Encoder().encode(np.array([symbol]), table_of(np.ones(4)))
    with pytest.raises(ValueError):
        Encoder().encode_signed(np.array([0]), table_of(np.ones(3)))
    with pytest.raises(ValueError):
        Decoder(b"").decode(2, table_of(np.ones((3, 4))))


def test_a_cut_stream_starts_right_and_reads_zeros_beyond_its_end():
    rng = np.random.default_rng(3)
    counts = random_tables(rng, 400, 20)
    symbols = draw(rng, counts)
    encoder = Encoder()
    encoder.encode(symbols, counts)
    data = encoder.finish()
    costs = np.cumsum(PRECISION - np.log2(counts[range(400), symbols]))
    for length in range(len(data)):
        sure = int((costs < 8 * length - 32).sum())
        assert (Decoder(data[:length]).decode(sure, counts[:sure]) == symbols[:sure]).all()
        assert outcome(data[:length], counts) == outcome(data[:length] + bytes(64), counts)


def test_a_decoder_knows_when_its_bytes_have_run_out():
    """After so many symbols that the coder's rounding adds up, too; the last four bytes may be anything."""
    rng = np.random.default_rng(0)
    skewed = share_counts(np.rint(np.exp(-np.abs(np.arange(-39, 41)) / 0.3) * 2**36).astype(np.int64))
    before = rng.choice(80, 10**6, p=skewed / skewed.sum())
    bits = rng.integers(0, 2, 400).tolist()
    encoder = Encoder()
    encoder.encode(before, skewed)
    first = len(encoder.finish())
    for bit in bits:
        encoder.encode_uniform(bit, 1)
    data = encoder.finish()
    for length in range(first, first + 40, 3):
        decoder, sure = Decoder(data[:length] + rng.bytes(4), cut=True), 0
        assert np.array_equal(decoder.decode(10**6, skewed), before)
        while decoder.decode_uniform(1) == bits[sure] and not decoder.past_end:
            sure += 1
        assert decoder.past_end and 8 * (length - first) - 20 < sure <= 8 * (length - first) + 8
    assert not Decoder(data).past_end


@pytest.mark.parametrize("size", [2, 80, 1024])
@pytest.mark.parametrize("zeros", [0, 7, 3000])
def test_nothing_that_was_written_is_taken_for_cut(size, zeros):
    """Symbols of the lowest counts cost less than their probabilities say, and symbols 0 at the end add no bits."""
    rng = np.random.default_rng(7)
    table = share_counts(np.eye(size, dtype=np.int64)[-1])
    symbols = np.append(rng.integers(0, size - 1, 5000), np.zeros(zeros, int))
    encoder, reference = Encoder(), DocumentedCoder()
    encoder.encode(symbols, table)
    for symbol in symbols.tolist():
        reference.symbol(symbol, table)
    data = encoder.finish()
    assert reference.accepts(data) and len(data) == reference.shortest()
    decoder = Decoder(data)
    for part in np.split(symbols, range(0, len(symbols), 100)[1:]):
        assert (decoder.decode(len(part), table) == part).all() and not decoder.overrun


def test_a_stream_that_lacks_its_last_bytes_is_taken_for_cut():
    table = share_counts(np.ones(1024, int))
    encoder = Encoder()
    encoder.encode(np.random.default_rng(8).integers(0, 1024, 500), table)
    for data in (encoder.finish()[:-14], b""):
        decoder = Decoder(data)
        decoder.decode(500, table)
        assert decoder.overrun


def outcome(data, counts):
    try:
        return Decoder(data).decode(len(counts), counts).tolist()
    except FormatError as error:
        return str(error)


def test_hostile_bytes_give_symbols_or_one_error():
    rng = np.random.default_rng(4)
    escapes = table_of([1e-6, 1.0])
    streams = [rng.bytes(int(n)) for n in rng.integers(0, 60, 200)] + [b"\xff" * 64, b"\0" * 64, b"\xff" * 7 + b"\0"]
    for data in streams:
        counts = random_tables(rng, 100, 8)
        try:
            decoder = Decoder(data)
            symbols = decoder.decode(100, counts)
            assert symbols.min() >= 0 and symbols.max() < 8
            decoder.decode_signed(1000, escapes)
            decoder.decode_uniform(32)
        except FormatError as error:
            assert "\n" not in str(error)
    with pytest.raises(FormatError):
        Decoder(b"\xff" * 64).decode_signed(3, table_of(np.ones(2)))
