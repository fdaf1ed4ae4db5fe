"""The range coder: integer symbols and integer probability tables in, bytes out, and back.

The only module that touches ``constriction``. A table is a row of K >= 2 counts, each at least 1, summing to
``2**PRECISION``; symbol k has probability ``counts[k] / 2**PRECISION``. Everything here is integer arithmetic in effect
(the quotients, and all that constriction does with them, are exact in float64), so the same symbols and tables give the
same bytes on every machine.

The coder, for another implementation (all integers, unbounded unless a width is named):

* Cumulative table in 24 bits: with ``C[k] = sum(counts[:k])``, symbol k occupies ``[D[k], D[k+1])`` where
  ``D[k] = C[k] * (2**24 - K) // 2**PRECISION + k`` and ``D[K] = 2**24``.
  A uniform value of b bits has ``D[k] = k << (24 - b)`` and ``K = 2**b``.
* State: ``low = 0``, ``range = 2**64 - 1``, ``words = 0``. Coding symbol k: ``step = range >> 24``;
  ``low += step * D[k]``; ``range = step * (D[k+1] - D[k])``; if now ``range < 2**32``, both ``low`` and ``range`` shift
  left by 32 bits and ``words += 1``.
* The stream is the shortest byte string that, continued by zero bytes to ``4 * words + 8`` bytes and read as a
  big-endian number, lies in ``[low, low + range)``; if it is shorter than ``4 * words - 8`` bytes (symbols 0 at the end
  add nothing to ``low``) it is continued to so many. A decoder reads zero bytes beyond its end.
* What was coded costs at most ``32 * words + 32`` bits, at ``24 - log2(D[k+1] - D[k])`` a symbol, so never more than
  `SLACK` bits beyond the stream. That is at least ``PRECISION - log2(counts[k] + 1 / 16)``.
"""

import numpy as np
from constriction import stream

from hybridflow.errors import FormatError

PRECISION = 20
WEIGHT_BITS = 40
SLACK = 96
"""Bits that may be read, at what they cost at least, beyond the end of a stream."""
_CHUNK = 16  # bits of a uniform value that are coded as one symbol
_ESCAPE_BITS = 48  # longest Exp-Golomb suffix: escaped values stay below 2**48


def share_counts(weights: np.ndarray) -> np.ndarray:
    """Turn weights into counts that the coder takes, by integers only.

    Args:
        weights: (K,) or (n, K) integers in 0..2**WEIGHT_BITS, 2 <= K <= 2**PRECISION, every row with a positive sum.

    Returns:
        int64 counts of the same shape, each >= 1, every row summing to ``2**PRECISION``: one count each, the others
        shared out in proportion and rounded down, what is left added to the row's largest entry (the first of equals).

    Raises:
        ValueError: a weight is out of range or no integer, a row sums to zero, or K is out of range.
    """
    weights = np.asarray(weights)
    size = weights.shape[-1]
    if not 2 <= size <= 2**PRECISION:
        raise ValueError(f"a table needs 2 to {2**PRECISION} entries, not {size}")
    total = weights.sum(axis=-1, keepdims=True)
    whole = np.issubdtype(weights.dtype, np.integer)
    if not whole or weights.size and not (weights.min() >= 0 and weights.max() <= 2**WEIGHT_BITS and total.min() > 0):
        raise ValueError(f"weights must be integers in 0..2**{WEIGHT_BITS}, not all zero")
    counts = 1 + weights.astype(np.int64) * (2**PRECISION - size) // total
    largest = np.argmax(counts, axis=-1, keepdims=True)
    rest = 2**PRECISION - counts.sum(axis=-1, keepdims=True)
    np.put_along_axis(counts, largest, np.take_along_axis(counts, largest, -1) + rest, -1)
    return counts


def _model(counts: np.ndarray) -> tuple:
    """What constriction wants in place of a table (K,), or of one table a symbol (n, K)."""
    probabilities = np.ascontiguousarray(counts, dtype=np.float64) / 2**PRECISION  # it misreads other layouts
    if probabilities.ndim == 1:
        return (stream.model.Categorical(probabilities, perfect=False),)
    return (stream.model.Categorical(perfect=False), probabilities)


def _chosen(symbols: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The counts (n,) of symbols (n,)."""
    return counts[symbols] if counts.ndim == 1 else np.take_along_axis(counts, symbols[:, None], axis=1)[:, 0]


def _cost(chosen: np.ndarray) -> float:
    """-log2 p of symbols of these counts (n,), summed."""
    return float(np.sum(PRECISION - np.log2(chosen)))


def _reach(counts: np.ndarray) -> int:
    """R of a signed table, whose 2R+2 entries stand for -R..R and the escape."""
    entries = np.shape(counts)[-1]
    if entries % 2:
        raise ValueError(f"a signed table has an even number of entries (-R..R and the escape), not {entries}")
    return entries // 2 - 1


def _chunks(bits: int) -> list[tuple[int, int]]:
    """(shift, width) of the pieces in which a uniform value of so many bits is coded, the highest first."""
    return [(shift, min(_CHUNK, bits - shift)) for shift in reversed(range(0, bits, _CHUNK))]


class Encoder:
    """Appends symbols to one range-coded stream.

    Attributes:
        bits: float, the running sum of -log2 p over all symbols so far. Differences of it are the cost of a section;
            ``len(finish())`` is at most one byte, and less than .006 bits a symbol, over ``bits / 8``. It is well under
            it where many symbols of the lowest counts were coded, whose share of the range is a 16th larger.
    """

    def __init__(self) -> None:
        self._coder = stream.queue.RangeEncoder()
        self.bits = 0.0

    def encode(self, symbols: np.ndarray, counts: np.ndarray) -> None:
        """Append symbols (n,), integers in [0, K), by one table (K,) for all or a row a symbol (n, K); n may be 0."""
        symbols = np.ascontiguousarray(symbols, dtype=np.int32)
        if not symbols.size:
            return
        counts = np.asarray(counts)
        self._coder.encode(symbols, *_model(counts))
        self.bits += _cost(_chosen(symbols, counts))

    def encode_signed(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Append values (n,), any integers with |v| < 2**48, by tables of 2R+2 entries: -R..R, then the escape.

        All n symbols come first; then, for every escaped value in order, |v|-R-1 in Exp-Golomb code and its sign.
        """
        values = np.asarray(values, dtype=np.int64)
        reach = _reach(counts)
        escaped = (values < -reach) | (values > reach)
        self.encode(np.where(escaped, 2 * reach + 1, values + reach), counts)
        for value in values[escaped].tolist():
            self._encode_escape(abs(value) - reach, value < 0)

    def _encode_escape(self, excess: int, negative: bool) -> None:
        """excess >= 1, with n bits below its leading one: n ones, a zero, those n bits, the sign."""
        suffix = excess.bit_length() - 1
        if suffix >= _ESCAPE_BITS:
            raise ValueError(f"a coded value must stay below 2**{_ESCAPE_BITS}")
        for _ in range(suffix):
            self.encode_uniform(1, 1)
        self.encode_uniform(0, 1)
        self.encode_uniform(excess - (1 << suffix), suffix)
        self.encode_uniform(int(negative), 1)

    def encode_uniform(self, value: int, bits: int) -> None:
        """Append an integer in [0, 2**bits) at exactly ``bits`` bits, in pieces of at most 16, the highest first.
        Raises ValueError for another."""
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{value} does not fit in {bits} bits")
        for shift, width in _chunks(bits):
            self._coder.encode(value >> shift & (1 << width) - 1, stream.model.Uniform(1 << width))
        self.bits += bits

    def finish(self) -> bytes:
        """The shortest byte string that decodes to all symbols so far and lacks little of what a decoder reads; it is
        empty if none cost anything."""
        words, (low_64, size) = self._coder.pos()
        length = 4 * words + 8
        # What constriction would write lies in the interval too, which gives the bits of `low` above its lowest 64.
        sealed = self._coder.get_compressed().astype(">u4").tobytes()
        sealed = int.from_bytes(sealed.ljust(length, b"\0"), "big")
        low = sealed - (sealed - low_64) % 2**64
        # Of the numbers in [low, high], the one with the most trailing zeros: high, cut where low - 1 departs from it.
        high = low + size - 1
        cut = ((low - 1) ^ high).bit_length() - 1 if low else high.bit_length()
        shortest = (high >> cut << cut).to_bytes(length, "big").rstrip(b"\0")
        return shortest.ljust(length - 16, b"\0")


def _reading(data: bytes, beyond: bytes) -> stream.queue.RangeDecoder:
    """constriction's decoder of data that go on by a byte over and over, of which it has 64 bits; it adds zeros."""
    padded = data + beyond * (-len(data) % 4 + 8)
    return stream.queue.RangeDecoder(np.frombuffer(padded, dtype=">u4").astype(np.uint32))


class Decoder:
    """Mirrors :class:`Encoder`: the same calls with the same tables, in the same order, give the symbols back.

    Beyond the end of ``data`` it reads zero bytes, so a cut stream gives its first symbols and then arbitrary ones.
    Arbitrary bytes give arbitrary symbols or a FormatError, in time proportional to bytes plus symbols.

    Args:
        cut: whether to keep watch over `past_end`, which takes three times as long.

    Attributes:
        bits: float, the running sum of -log2 p over all symbols so far, as in :class:`Encoder`.
        past_end: whether some symbol depends on what follows all bytes but the last four, which may be a checksum's.
    """

    def __init__(self, data: bytes, cut: bool = False) -> None:
        self.bits = self._least = 0.0
        self.past_end = False
        self._available = 8 * len(data)
        self._coder = _reading(data, b"\0")
        self._bounds = [_reading(data[:-4], beyond) for beyond in (b"\0", b"\xff")] if cut else []
        """The lowest and the highest number that begins so: a symbol that both hold is the same in all between."""

    def _decode(self, *arguments):
        try:
            symbols = self._coder.decode(*arguments)
        except AssertionError:  # constriction's word for a number outside every symbol's interval
            raise FormatError("the coded stream is damaged: get the file again from its source") from None
        self.past_end = self.past_end or not self._sure(symbols, arguments)
        return symbols

    def _sure(self, symbols, arguments: tuple) -> bool:
        try:
            return all(np.array_equal(bound.decode(*arguments), symbols) for bound in self._bounds)
        except AssertionError:
            return False

    @property
    def overrun(self) -> bool:
        """Whether so much was read beyond the end that no encoder can have written these bytes."""
        return self._least > self._available + SLACK

    def decode(self, n: int, counts: np.ndarray) -> np.ndarray:
        """The next n symbols, (n,) int32 in [0, K), by one table (K,) or a row a symbol (n, K).

        Raises:
            FormatError: the stream is damaged (most damage decodes to wrong symbols instead: check a checksum).
        """
        if np.ndim(counts) == 2 and len(counts) != n:
            raise ValueError(f"{n} symbols need {n} rows of counts, not {len(counts)}")
        if not n:
            return np.zeros(0, dtype=np.int32)
        counts = np.asarray(counts)
        model = _model(counts)
        symbols = self._decode(*model, n) if len(model) == 1 else self._decode(*model)
        chosen = _chosen(symbols, counts)
        self.bits += _cost(chosen)
        self._least += _cost(chosen + 1 / 16)
        return symbols

    def decode_signed(self, n: int, counts: np.ndarray) -> np.ndarray:
        """The next n values, (n,) int64, coded by :meth:`Encoder.encode_signed`. Raises FormatError as decode does."""
        reach = _reach(counts)
        symbols = self.decode(n, counts)
        values = symbols.astype(np.int64) - reach
        for i in np.flatnonzero(symbols == 2 * reach + 1):
            values[i] = self._decode_escape(reach)
        return values

    def _decode_escape(self, reach: int) -> int:
        suffix = 0
        while self.decode_uniform(1):
            suffix += 1
            if suffix == _ESCAPE_BITS:
                raise FormatError("the coded stream is damaged (an absurd value): get the file again from its source")
        magnitude = reach + (1 << suffix) + self.decode_uniform(suffix)
        return -magnitude if self.decode_uniform(1) else magnitude

    def decode_uniform(self, bits: int) -> int:
        """The next integer in [0, 2**bits), coded by :meth:`Encoder.encode_uniform`; raises as decode does."""
        value = 0
        for _, width in _chunks(bits):
            value = value << width | int(self._decode(stream.model.Uniform(1 << width)))
        self.bits += bits
        self._least += bits
        return value
