"""Made-up checkpoints of real sizes, for benchmarks and for planning hardware."""

from bitconv.dummy.checkpoint import STORED, Dummy, dummy
from bitconv.dummy.shapes import SHAPES

__all__ = ["SHAPES", "STORED", "Dummy", "dummy"]
