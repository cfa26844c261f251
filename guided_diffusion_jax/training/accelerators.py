"""What can be rented, by its makers' own figures: memory, and matrix products in bfloat16 without sparsity."""

from typing import NamedTuple

GIB = 2**30

UTILISATION = 0.3
"""An assumption, not a measurement: the share of the peak at which a training step works."""

USABLE = 0.9
"""An assumption: the share of the memory that a program can have. On GPUs JAX takes 0.75 unless
XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""


class Accelerator(NamedTuple):
    """One device, as JAX counts them.

    Attributes:
        name: as in the makers' documents.
        memory: bytes.
        peak: floating-point operations a second, bfloat16.
        source: the document.
    """

    name: str
    memory: int
    peak: float
    source: str

    @property
    def usable(self) -> int:
        """Bytes that a program can have."""
        return int(USABLE * self.memory)

    def rate(self, flops: float) -> float:
        """How often a second it does so much work, at `UTILISATION`."""
        return UTILISATION * self.peak / flops


_TPU = "cloud.google.com/tpu/docs"
_NVIDIA = "NVIDIA's data sheet"

ACCELERATORS = (
    Accelerator("TPU v5e", 16 * GIB, 197e12, f"{_TPU}/v5e"),
    Accelerator("TPU v4", 32 * GIB, 275e12, f"{_TPU}/v4"),
    Accelerator("TPU v6e", 32 * GIB, 918e12, f"{_TPU}/v6e"),
    Accelerator("A100 40GB", 40 * GIB, 312e12, f"{_NVIDIA} of the A100"),
    Accelerator("A100 80GB", 80 * GIB, 312e12, f"{_NVIDIA} of the A100"),
    Accelerator("H100 SXM", 80 * GIB, 989e12, f"{_NVIDIA} of the H100"),
    Accelerator("TPU v5p", 95 * GIB, 459e12, f"{_TPU}/v5p"),
)
"""By memory."""
