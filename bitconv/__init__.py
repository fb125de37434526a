"""bitconv: BitNet b1.58 checkpoints to GGUF with packed ternary weights, proven right bit for bit.

convert(model, output) writes a file, verify(file) checks one, repack(file, output) changes its layout. They are
imported when first used, so that importing bitconv costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bitconv.system.errors import BitconvError

if TYPE_CHECKING:
    from bitconv.commands.compare import Comparison, compare
    from bitconv.commands.convert import Conversion, ConvertedTensor, convert
    from bitconv.commands.evaluate import Evaluation, evaluate
    from bitconv.commands.export import Export, ExportedTensor, export
    from bitconv.commands.repack import RepackedTensor, Repacking, repack
    from bitconv.commands.verify import Verification, VerifiedTensor, verify

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
    "Comparison": "compare",
    "Conversion": "convert",
    "ConvertedTensor": "convert",
    "Evaluation": "evaluate",
    "Export": "export",
    "ExportedTensor": "export",
    "RepackedTensor": "repack",
    "Repacking": "repack",
    "Verification": "verify",
    "VerifiedTensor": "verify",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bitconv' has no attribute {name!r}")
    return getattr(import_module(f"bitconv.commands.{_HOMES.get(name, name)}"), name)


def __dir__() -> list[str]:
    return __all__
