"""Which type for which machine: what each runner has for a type on each kind of processor.

One table, from which `bitconv runners`, docs/runners.md, `--backend` and the notes of `convert` come. A cell says what
it was read or measured in. Sources: ggml-cpu/arch, ggml-cuda, ggml-metal, ggml-vulkan, ggml-sycl and ggml-webgpu of
ggml and llama.cpp; iqk_gemm_1bit.cpp, ggml-cuda and ggml-metal of ik_llama.cpp; ggml-bitnet-mad.cpp and
ggml-bitnet-lut.cpp of bitnet.cpp.
"""

from __future__ import annotations

import platform
from enum import Enum
from typing import NamedTuple

BACKENDS = ("x86", "arm", "cuda", "metal", "vulkan", "sycl", "webgpu")
_MACHINES = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}
_GPU = ("cuda", "metal", "vulkan", "sycl", "webgpu")


class Speed(Enum):
    """FAST: a kernel for this type and processor. GENERIC: code for any. NONE: nothing, and for a GPU the CPU."""

    FAST = "fast"
    GENERIC = "generic"
    NONE = "none"


class Cell(NamedTuple):
    speed: Speed
    source: str


_GGML = "ggml 0.21.0 of August 2026, read"
_LLAMA_CPP = "llama.cpp of October 2026, read"
_WHEEL = "llama.cpp b11549, measured"
_IK = "ik_llama.cpp of August 2026, read"
_IK_WHEEL = "ik-llama-cpp-python 0.1.5, measured"
_FORK = "bitnet.cpp of October 2024, read"
_BITNET_CPP = "bitnet.cpp of January 2026, read"
_BITNET_CPP_2025 = "bitnet.cpp of June 2025, measured"
_BITNET_CPP_2026 = "bitnet.cpp of July 2026, read"


def _fast(source: str) -> Cell:
    return Cell(Speed.FAST, source)


def _none(source: str, *backends: str) -> dict[str, Cell]:
    return dict.fromkeys(backends, Cell(Speed.NONE, source))


# By runner and type; what is not here is not known.
CELLS: dict[str, dict[str, dict[str, Cell]]] = {
    "llama.cpp": {
        "tq1_0": {
            "x86": _fast(_WHEEL),
            "arm": _fast(_GGML),
            "vulkan": _fast(_LLAMA_CPP),
            **_none(_LLAMA_CPP, "cuda", "metal", "sycl"),
            **_none(_GGML, "webgpu"),
        },
        "tq2_0": {
            "x86": _fast(_WHEEL),
            "arm": _fast(_GGML),
            "metal": _fast(_GGML),
            "vulkan": _fast(_GGML),
            **_none(_LLAMA_CPP, "cuda", "sycl"),
            **_none(_GGML, "webgpu"),
        },
        "q2_0": {
            "x86": Cell(Speed.GENERIC, _WHEEL),
            **dict.fromkeys(("arm", "cuda", "metal", "vulkan", "sycl"), _fast(_GGML)),
            **_none(_GGML, "webgpu"),
        },
    },
    "ik_llama.cpp": {
        name: {
            "x86": _fast(_IK_WHEEL),
            **dict.fromkeys(("arm", "cuda", "metal"), _fast(_IK)),
            **_none(_IK, "vulkan", "sycl", "webgpu"),
        }
        for name in ("iq2_bn", "iq1_bn")
    },
    "bitnet.cpp": {
        "i2_s": {"x86": _fast(_BITNET_CPP), "arm": _fast(_BITNET_CPP_2025), **_none(_FORK, *_GPU)},
        "tl1": {"arm": _fast(_BITNET_CPP_2025), **_none(_FORK, "x86", *_GPU)},
        "tl2": {"x86": _fast(_BITNET_CPP_2025), **_none(_FORK, "arm", *_GPU)},
        "tq1_0": {"x86": _fast(_FORK), "arm": _fast(_FORK), **_none(_FORK, *_GPU)},
        "tq2_0": {"x86": _fast(_FORK), "arm": _fast(_FORK), **_none(_FORK, *_GPU)},
    },
    "bitnet.cpp-2026": {"i2_s": {"x86": _fast(_BITNET_CPP_2026), "arm": _fast(_BITNET_CPP_2026)}},
    "bitnet.cpp-arm64": {"i2_s": {"arm": _fast(_BITNET_CPP), **_none(_FORK, *_GPU)}},
}
# On x86 (an AMD EPYC with AVX-512), a token of a model of 0.7B on one thread: tests/bench/runner_types.py prints them.
MILLISECONDS: dict[str, dict[str, float]] = {
    "llama.cpp": {"tq1_0": 28.7, "tq2_0": 20.5, "q2_0": 338},
    "ik_llama.cpp": {"iq1_bn": 33.5, "iq2_bn": 20.8},
}
MEASURED = "0.7B, one thread"
# Less is no reason to speak of another type.
_WORTH_SAYING = 1.5


def this_machine() -> str | None:
    """The backend that is this machine's processor; None where it is neither."""
    return _MACHINES.get(platform.machine().lower())


def find_cell(runner: str, type_name: str, backend: str) -> Cell | None:
    return CELLS.get(runner, {}).get(type_name, {}).get(backend)


def milliseconds(runner: str, type_name: str, backend: str) -> float | None:
    return MILLISECONDS.get(runner, {}).get(type_name) if backend == "x86" else None


def rank(runner: str, type_name: str, backend: str) -> tuple[int, float, bool] | None:
    """The fastest has the least; None where nothing computes the type there.

    A kernel goes before generic code, what was measured before what was not, and where nothing was measured a code of
    two bits, which shifts alone read, before one of base three.
    """
    found = find_cell(runner, type_name, backend)
    if found is None or found.speed is Speed.NONE:
        return None
    measured = milliseconds(runner, type_name, backend)
    in_base_three = type_name in ("tq1_0", "iq1_bn", "tl2")
    return list(Speed).index(found.speed), float("inf") if measured is None else measured, in_base_three


def why_faster(runner: str, better: str, than: str, backend: str, *, here: bool = False) -> str | None:
    """In words, why `better` is the type to take there in this runner; None where that is not known, or no matter.

    here: it is this machine.
    """
    one, other = find_cell(runner, better, backend), find_cell(runner, than, backend)
    if one is None or other is None or one.speed is Speed.NONE:
        return None
    where = f"on this {backend}" if here else f"on {backend}"
    times = [milliseconds(runner, name, backend) for name in (than, better)]
    if times[0] is not None and times[1] is not None:
        ratio = times[0] / times[1]
        if ratio < _WORTH_SAYING:
            return None
        return (
            f"{where} {runner} computes {better} about {_round(ratio)} times faster than {than} ({MEASURED}; "
            f"{one.source})"
        )
    if one.speed is other.speed:
        return None
    has = {Speed.FAST: "a kernel", Speed.GENERIC: "generic code", Speed.NONE: "nothing"}
    return f"{where} {runner} has {has[one.speed]} for {better} and {has[other.speed]} for {than} ({one.source})"


def why_not(runner: str, type_name: str, backend: str) -> str | None:
    """In words, that nothing computes a type there; None where something does."""
    found = find_cell(runner, type_name, backend)
    if found is None:
        return f"it is not known what {runner} has for {type_name} on {backend}"
    by_the_cpu = ", and the CPU computes it" if backend in _GPU else ""
    nothing = f"on {backend} {runner} has nothing for {type_name}{by_the_cpu} ({found.source})"
    return nothing if found.speed is Speed.NONE else None


def _round(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def sources() -> list[str]:
    """What cells were read or measured in, each once: a cell's number in table_rows is its place, from 1 on."""
    by_type = (cells for types in CELLS.values() for cells in types.values())
    return list(dict.fromkeys(cell.source for cells in by_type for cell in cells.values()))


def table_rows() -> list[tuple[str, ...]]:
    """A row for each runner and type: their names, and what there is on each backend, with the number of its source."""
    numbers = {source: str(number) for number, source in enumerate(sources(), 1)}
    return [
        (
            runner,
            name,
            *(f"{cells[b].speed.value} {numbers[cells[b].source]}" if b in cells else "?" for b in BACKENDS),
        )
        for runner, by_type in CELLS.items()
        for name, cells in by_type.items()
    ]
