"""bitconv: BitNet b1.58 checkpoints to GGUF with packed ternary weights, proven right bit for bit.

convert(model, output) writes a file, verify(file) checks one, repack(file, output) changes its layout. They are
imported when first used, so that importing bitconv costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitconv.commands.audit import Audit, AuditedTensor, audit
    from bitconv.commands.compare import Comparison, compare
    from bitconv.commands.convert import Conversion, ConvertedTensor, convert
    from bitconv.commands.diff import ChangedTensor, Difference, diff
    from bitconv.commands.doctor import Extra, FoundRunner, Surroundings, doctor
    from bitconv.commands.dummy import Dummy, dummy
    from bitconv.commands.evaluate import Evaluation, evaluate
    from bitconv.commands.export import Export, ExportedTensor, export
    from bitconv.commands.families import Catalogue, families
    from bitconv.commands.generate import generate
    from bitconv.commands.inspect import InspectedKind, InspectedPart, InspectedTensor, Overview, inspect
    from bitconv.commands.kernel_config import KernelConfig, kernel_config
    from bitconv.commands.open import OpenModel, OpenTensor, open
    from bitconv.commands.repack import RepackedTensor, Repacking, repack
    from bitconv.commands.reporting import Report, report
    from bitconv.commands.trial import Trial, Trials, try_runner
    from bitconv.commands.verify import Verification, VerifiedTensor, verify
    from bitconv.system.errors import BitconvError

__version__ = "0.1.0"
__all__ = [
    "Audit",
    "AuditedTensor",
    "BitconvError",
    "Catalogue",
    "ChangedTensor",
    "Comparison",
    "Conversion",
    "ConvertedTensor",
    "Difference",
    "Dummy",
    "Evaluation",
    "Export",
    "ExportedTensor",
    "Extra",
    "FoundRunner",
    "InspectedKind",
    "InspectedPart",
    "InspectedTensor",
    "KernelConfig",
    "OpenModel",
    "OpenTensor",
    "Overview",
    "RepackedTensor",
    "Repacking",
    "Report",
    "Surroundings",
    "Trial",
    "Trials",
    "Verification",
    "VerifiedTensor",
    "__version__",
    "audit",
    "compare",
    "convert",
    "diff",
    "doctor",
    "dummy",
    "evaluate",
    "export",
    "families",
    "generate",
    "inspect",
    "kernel_config",
    "open",
    "repack",
    "report",
    "try_runner",
    "verify",
]

_HOMES = {
    "Audit": "audit",
    "AuditedTensor": "audit",
    "Catalogue": "families",
    "ChangedTensor": "diff",
    "Comparison": "compare",
    "Conversion": "convert",
    "ConvertedTensor": "convert",
    "Difference": "diff",
    "Dummy": "dummy",
    "Evaluation": "evaluate",
    "Export": "export",
    "ExportedTensor": "export",
    "Extra": "doctor",
    "FoundRunner": "doctor",
    "InspectedKind": "inspect",
    "InspectedPart": "inspect",
    "InspectedTensor": "inspect",
    "KernelConfig": "kernel_config",
    "OpenModel": "open",
    "OpenTensor": "open",
    "Overview": "inspect",
    "RepackedTensor": "repack",
    "Repacking": "repack",
    "Report": "reporting",
    "Surroundings": "doctor",
    "Trial": "trial",
    "Trials": "trial",
    "Verification": "verify",
    "VerifiedTensor": "verify",
    "report": "reporting",
    "try_runner": "trial",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bitconv' has no attribute {name!r}")
    from bitconv.system.errors import BitconvError, Code

    if name == "BitconvError":
        return BitconvError
    try:
        return getattr(import_module(f"bitconv.commands.{_HOMES.get(name, name)}"), name)
    except ImportError as error:
        if "BITCONV_ISA" in str(error):  # what the extension says to an instruction set that it does not have
            raise BitconvError(str(error), code=Code.USAGE, way_out="unset it for the best one") from None
        raise


def __dir__() -> list[str]:
    return __all__
