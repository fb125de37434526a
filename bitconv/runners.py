"""The runners: what each one calls the ternary types, and what it computes right.

One table, from which the refusals, the type ids, the file types and `bitconv runners` all come. Sources: each
runner's ggml.h and llama.h for the numbers; perplexity runs of each runner on small trained models for what it
computes right, the release of bitnet.cpp of July 2026 excepted, which was read.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from bitconv.gguf import type_by_name
from bitconv.layouts import Layout
from bitconv.system.errors import BitconvError, Code, option


@dataclass(frozen=True)
class Runner:
    """types: general.file_type (LLAMA_FTYPE_*) by the type of the ternary tensors, for each type computed right.

    activations: the hidden_act that each graph (Architecture.graph) applies, whatever the file says.
    type_ids: the ggml type ids of ternary types. Other types have ids that all runners agree on.
    scale_tensors: a float32 `.scale` beside a weight multiplies its output. expert_types: of stacked experts.
    min_columns: the fewest columns of a ternary tensor of a type. older_names: of architectures, still read.
    run: the command that runs a file, {} standing for it.
    """

    name: str
    versions: str
    activations: Mapping[str, str]
    types: Mapping[str, int]
    type_ids: Mapping[str, int]
    run: str
    scale_tensors: bool = False
    expert_types: tuple[str, ...] = ()
    min_columns: Mapping[str, int] = field(default_factory=dict)
    run_by_type: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def computes(self) -> frozenset[str]:
        """All types that a tensor may have beside the file's own: the ternary ones, floats, and q8_0."""
        return frozenset(self.types) | {"q8_0"}

    def file_type(self, type_name: str) -> int:
        return self.types[type_name] if type_name in self.types else OTHER_FILE_TYPES[type_name]

    def type_id(self, type_name: str) -> int:
        return self.type_ids[type_name] if type_name in self.type_ids else type_by_name(type_name).id

    def command(self, type_name: str, file: object, *, embedding: bool = False) -> str:
        run = _LLAMA_EMBEDDING if embedding else self.run_by_type.get(type_name, self.run)
        return run.format(shlex.quote(str(file)))


# The same in every runner.
FLOAT_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}
OTHER_FILE_TYPES = {**FLOAT_FILE_TYPES, "q8_0": 7}
_LLAMA_EMBEDDING = "llama-embedding -m {} -p 'query: Once upon a time' --embd-normalize 2"
_LLAMA_CLI = "llama-cli -m {} -p 'Once upon a time'"

RUNNERS = (
    Runner(
        "bitnet.cpp",
        "October 2024 to May 2026; bitnet-b1.58 from April 2025",
        activations={"llama": "silu", "bitnet": "silu", "bitnet-b1.58": "relu2", "bitnet-25": "relu2"},
        types={"i2_s": 40, "tl1": 38, "tl2": 39, "tq1_0": 36, "tq2_0": 37, "f32": 0, "f16": 1, "bf16": 32},
        type_ids={"tq1_0": 34, "tq2_0": 35, "i2_s": 36, "tl1": 38, "tl2": 39},
        run=_LLAMA_CLI,
        # Its generated TL2 kernels give NaN for batches of 8 tokens and more; TL1's are right for one token only.
        run_by_type={"tl1": _LLAMA_CLI + " -b 1 -ub 1", "tl2": _LLAMA_CLI + " -b 4 -ub 4"},
        notes=(
            "TL1 and TL2 need a build with kernels of the same tiles (TL1 on arm64, TL2 on x86); a file with others "
            "is garbage without an error",
            "builds for arm64 from November 2025 on are reported to read I2_S in another byte order",
        ),
    ),
    Runner(
        "bitnet.cpp-2026",
        "from July 2026 (read, not measured)",
        activations={"llama": "silu", "bitnet": "silu", "bitnet-b1.58": "silu", "qwen3 with input norms": "silu"},
        types={"i2_s": 41, "tl1": 42, "tl2": 43},
        type_ids={"i2_s": 36, "tl1": 38, "tl2": 42},
        run=_LLAMA_CLI,
        notes=("qwen3 with norms on the inputs of the projections, which no other runner has",),
    ),
    Runner(
        "llama.cpp",
        "2026",
        activations={"llama": "silu", "bitnet": "silu", "qwen3": "silu"},
        types={"tq1_0": 36, "tq2_0": 37, "q2_0": 41, "f32": 0, "f16": 1, "bf16": 32},
        type_ids={"tq1_0": 34, "tq2_0": 35, "q2_0": 42},
        run=_LLAMA_CLI,
        scale_tensors=True,
        expert_types=("tq1_0", "tq2_0", "q2_0", *FLOAT_FILE_TYPES),
        notes=("refuses the type ids of I2_S, TL1 and TL2, or reads them as something else",),
    ),
    Runner(
        "ik_llama.cpp",
        "2026",
        activations={
            "llama": "silu",
            "bitnet": "silu",
            "bitnet-25": "relu2",
            "bitnet-b1.58": "relu2",
            "qwen3": "silu",
        },
        types={"iq2_bn": 137, "iq1_bn": 136, "f32": 0, "f16": 1, "bf16": 32},
        type_ids={"iq1_bn": 134, "iq2_bn": 135},
        run=_LLAMA_CLI,
        min_columns={"iq1_bn": 512, "iq2_bn": 512},
        notes=("loads I2_S and computes garbage; repack such a file to iq2_bn",),
    ),
)
_BY_NAME = {runner.name: runner for runner in RUNNERS}


def runner(name: str) -> Runner:
    """The runner of a name. BitconvError where there is none."""
    if name not in _BY_NAME:
        raise BitconvError(f"runner {name!r} is not known; {', '.join(_BY_NAME)} are", code=Code.USAGE)
    return _BY_NAME[name]


def default_runner(type_name: str, architecture: str) -> Runner:
    """The runner that a type implies: the one whose type it is, in the first release that knows the architecture, or
    for floats one that knows it."""
    if type_name in FLOAT_FILE_TYPES:
        return next(r for r in (_BY_NAME["llama.cpp"], *RUNNERS) if architecture in r.activations)
    implied = next(r for r in (_BY_NAME["llama.cpp"], *RUNNERS) if type_name in r.types)
    releases = (r for r in RUNNERS if r.name.startswith(implied.name) and type_name in r.types)
    return next((r for r in releases if architecture in r.activations), implied)


def graph_obstacle(target: Runner, architecture: str, activation: str, type_name: str) -> str | None:
    """Why a runner would not load a model of this type, or compute it wrong; None where it is right."""
    if architecture not in target.activations:
        cause = f"{target.name} does not know the architecture {architecture}"
    elif target.activations[architecture] != activation:
        cause = (
            f"{target.name} applies {target.activations[architecture]} in the graph of {architecture}, the model needs "
            f"{activation}: it would load and talk nonsense"
        )
    elif type_name not in target.types:
        cause = f"{target.name} does not compute {type_name}"
    else:
        return None
    return cause


def nearest(target: Runner, architecture: str, activation: str, type_name: str) -> str:
    """The way out where graph_obstacle finds one: a type and a runner that work, as near as there are."""
    able = [
        (name, r.name)
        for r in RUNNERS
        if r.activations.get(architecture) == activation
        for name in r.types
        if name not in FLOAT_FILE_TYPES
    ]
    name, runner_name = min(able, key=lambda one: (one[0] != type_name, one[1] != target.name))
    return f"the nearest that works: {option('type', name)} {option('runner', runner_name)}"


def shape_obstacle(target: Runner, packing: Layout, rows: int, columns: int, experts: int = 0) -> str | None:
    """Why a tensor of this shape, or a stack of so many, cannot have this format in this runner; None where it can."""
    if experts and packing.name not in target.expert_types:
        return f"{target.name} does not compute stacked experts in {packing.name}"
    least = target.min_columns.get(packing.name, 0)
    if columns < least:
        return f"{target.name} needs {least} columns or more for {packing.name}, and these are {columns}"
    return packing.obstacle(rows, columns)


def experts_way_out() -> str:
    """A type and a runner that compute stacked experts."""
    name, runner_name = next((name, r.name) for r in RUNNERS for name in r.types if name in r.expert_types)
    return f"what works: {option('type', name)} {option('runner', runner_name)}"


def layout_name(type_id: int, file_type: int | None) -> str | None:
    """The ternary layout that a ggml type id stands for in a file of this general.file_type; None where it is none.

    Ids and file types have been given twice: 42 is Q2_0 in llama.cpp, and TL2 in bitnet.cpp from July 2026, whose
    file type for it is 43.
    """
    names = {number: name for r in RUNNERS for name, number in r.type_ids.items()}
    names[42] = "tl2" if file_type == 43 else "q2_0"
    return names.get(type_id)


def file_types(number: int) -> set[str]:
    """The types that a general.file_type stands for in one runner or another."""
    return {name for r in RUNNERS for name, known in r.types.items() if known == number}
