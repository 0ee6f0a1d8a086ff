"""GPUs by name: what their makers say of memory and speed."""

from __future__ import annotations

from dataclasses import dataclass

from interp.core.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU.

    memory_gb: memory, in GB. tflops: the peak of dense matrix products in bfloat16 with sums in
    float32, without sparsity, in 1e12 operations a second. gb_s: memory bandwidth, in GB a second.
    """

    name: str
    memory_gb: float
    tflops: float
    gb_s: float


CARDS = (
    Card(name="RTX 4090", memory_gb=24, tflops=165.2, gb_s=1008),
    Card(name="A100 40GB", memory_gb=40, tflops=312, gb_s=1555),
    Card(name="L40S", memory_gb=48, tflops=362, gb_s=864),
    Card(name="A100 80GB", memory_gb=80, tflops=312, gb_s=2039),
    Card(name="H100 SXM", memory_gb=80, tflops=989, gb_s=3350),
    Card(name="H200", memory_gb=141, tflops=989, gb_s=4800),
)
"""From NVIDIA's data sheets (for the RTX 4090, the white paper of the Ada architecture). Where a
sheet gives the rate with sparsity alone, half of it."""


def card_named(name: str) -> Card:
    """A GPU of `CARDS` by its name; capitals and spaces do not matter.

    Raises:
        InterpError: no such GPU.
    """
    plain = {card.name.lower().replace(" ", ""): card for card in CARDS}
    if (found := plain.get(name.lower().replace(" ", ""))) is None:
        raise unknown("GPU", name, [card.name for card in CARDS])
    return found
