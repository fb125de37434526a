"""bitconv: BitNet b1.58 checkpoints to GGUF with packed ternary weights, proven right bit for bit.

convert(model, output) writes a file, verify(file) checks one, repack(file, output) changes its layout. They are
imported when first used, so that importing bitconv costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bitconv.errors import BitconvError

if TYPE_CHECKING:
    from bitconv.comparison import Comparison, compare
    from bitconv.conversion import Conversion, ConvertedTensor, convert
    from bitconv.evaluation import Evaluation, evaluate
    from bitconv.exporting import Export, ExportedTensor, export
    from bitconv.repacking import RepackedTensor, Repacking, repack
    from bitconv.verification import Verification, VerifiedTensor, verify

__version__ = "0.1.0"
__all__ = [
    "BitconvError",
    "Comparison",
    "Conversion",
    "ConvertedTensor",
    "Evaluation",
    "Export",
    "ExportedTensor",
    "RepackedTensor",
    "Repacking",
    "Verification",
    "VerifiedTensor",
    "__version__",
    "compare",
    "convert",
    "evaluate",
    "export",
    "repack",
    "verify",
]

_HOMES = {
    "Comparison": "comparison",
    "compare": "comparison",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "Conversion": "conversion",
    "ConvertedTensor": "conversion",
    "convert": "conversion",
    "RepackedTensor": "repacking",
    "Repacking": "repacking",
    "repack": "repacking",
    "Export": "exporting",
    "ExportedTensor": "exporting",
    "export": "exporting",
    "Verification": "verification",
    "VerifiedTensor": "verification",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bitconv' has no attribute {name!r}")
    return getattr(import_module(f"bitconv.{_HOMES[name]}"), name)
