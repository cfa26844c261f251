"""What a file of weights may ask for. A file may come from anybody, so all is checked before anything is built.

The largest published networks of images have some 3,000 tensors, of four dimensions at most, and describe each in
about 200 bytes and 40 operations of a pickle. The limits leave room for ten times that.
"""

DESCRIPTION = 8 * 2**20
"""Bytes of what describes the tensors: the directory of a zip archive, a pickle, the header of a safetensors file."""

OPERATIONS = 400_000
"""Operations of a pickle."""

DEPTH = 16
"""Tuples in tuples, and parts of a pickle that are open at a time."""

BITS = 63
"""Of a whole number: 19 decimal digits."""

DIMENSIONS = 8
"""Of a tensor."""

BLOCKS = 100
"""Numbered blocks on a network's way down; ADM's largest has 21."""


def description(size: int) -> int:
    """Bytes that may describe the tensors of a file of `size` bytes."""
    return min(size, DESCRIPTION)


def tensor(size: int) -> int:
    """Bytes that a tensor of a file of `size` bytes may take in memory; all of ADM's together take no more either."""
    return size
