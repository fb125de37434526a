"""Made-up checkpoints of real sizes, for benchmarks and for planning hardware."""

from bitconv.commands.dummy.checkpoint import Dummy, dummy
from bitconv.commands.dummy.shapes import SHAPES

__all__ = ["SHAPES", "Dummy", "dummy"]
