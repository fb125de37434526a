"""The runners: what each one calls the ternary types, and what it computes right.

One table, from which the refusals, the type ids, the file types and `bitconv runners` all come. What it needs of numpy
is imported late, so that help texts have the names for nothing. Sources: each
runner's ggml.h and llama.h for the numbers; perplexity runs of each runner on small trained models for what it
computes right; of the release of bitnet.cpp of July 2026 a descendant was run, and its own source read.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bitconv.layouts import EIGHT_BIT, FLOATS, QUANTIZED
from bitconv.system.errors import option

if TYPE_CHECKING:
    from bitconv.layouts.layout import Layout
    from bitconv.layouts.tiles import Tile


@dataclass(frozen=True)
class Runner:
    """types: general.file_type (LLAMA_FTYPE_*) by the type of the ternary tensors, for each type computed right.

    activations: the hidden_act that each graph (Architecture.graph) applies, whatever the file says.
    type_ids: the ggml type ids of ternary types. Other types have ids that all runners agree on.
    scale_tensors: a float32 `.scale` beside a weight multiplies its output. expert_types: of stacked experts.
    rope_lists: for longrope, the graph of llama loads a list of factors for long contexts and one for short.
    min_columns: the fewest columns of a ternary tensor of a type. run: the command that runs a file, {} standing for
    it. preferred: before others that compute a type, and know a type id, as well. release_of: the runner that this is
    a later release of. own_pre: the values of tokenizer.ggml.pre that it alone knows. lookups, heads: the types that it
    computes right, beside floats, of token_embd.weight where rows are looked up, and where it multiplies by that or by
    an output.weight; these are different code. unproven: general.file_type by type, of types whose code it has and
    that nobody is known to have run: such files are read, not written. why_unproven: in words. i2_s_order: the byte
    order of I2_S, None for the published one. machine: the only one that it runs on, of bitconv.backends.BACKENDS.
    machines: by type, what it runs such files on, where that is not every machine, in words. type_notes: by type, what
    the user of such a file should know.
    """

    name: str
    versions: str
    activations: dict[str, str]
    types: dict[str, int]
    type_ids: dict[str, int]
    run: str
    home: str
    scale_tensors: bool = False
    expert_types: tuple[str, ...] = ()
    rope_lists: bool = False
    min_columns: Mapping[str, int] = field(default_factory=dict)
    preferred: bool = False
    release_of: str = ""
    own_pre: tuple[str, ...] = ()
    lookups: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    unproven: dict[str, int] = field(default_factory=dict)
    why_unproven: str = ""
    i2_s_order: str | None = None
    machine: str | None = None
    machines: dict[str, str] = field(default_factory=dict)
    type_notes: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def computes(self) -> frozenset[str]:
        """All types that a tensor may have beside the file's own: the ternary ones, floats, and q8_0."""
        return frozenset(self.types) | {EIGHT_BIT}

    def notes_on(self, type_name: str) -> tuple[str, ...]:
        return (self.type_notes[type_name],) if type_name in self.type_notes else ()

    def file_type(self, type_name: str) -> int:
        return self.types[type_name] if type_name in self.types else OTHER_FILE_TYPES[type_name]

    def type_id(self, type_name: str) -> int:
        from bitconv.gguf import type_by_name

        return self.type_ids[type_name] if type_name in self.type_ids else type_by_name(type_name).id

    def command(self, type_name: str, file: object, *, embedding: bool = False) -> str:
        """How to run a file whose ternary tensors are of this type, no more tokens at a time than it computes right."""
        from bitconv.layouts.registry import max_batch

        most = None if embedding else max_batch(type_name)
        run = _LLAMA_EMBEDDING if embedding else self.run
        return run.format(shlex.quote(str(file))) + ("" if most is None else f" -b {most} -ub {most}")


# The same in every runner.
FLOAT_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}
OTHER_FILE_TYPES = {**FLOAT_FILE_TYPES, EIGHT_BIT: 7}
_LLAMA_EMBEDDING = "llama-embedding -m {} -p 'query: Once upon a time' --embd-normalize 2"
_LLAMA_CLI = "llama-cli -m {} -p 'Once upon a time'"
_BITNET_CPP = {"llama": "silu", "bitnet": "silu", "bitnet-b1.58": "relu2", "bitnet-25": "relu2"}
# What its own converter calls Falcon3's and Falcon-E's pre-tokenizer. See PRE_TOKENIZERS.
_BITNET_CPP_PRE = ("falcon3", "falcon_e")

# With 16, and 64 bytes more a size, it ran. Its issue 143, pull request 385.
_TL1_CRASH = (
    "bitnet.cpp as shipped crashes on tl1: in ggml_bitnet_mul_mat_get_wsize of src/ggml-bitnet-lut.cpp, "
    "`ne10 * ne11 * 15 * sizeof(int8_t)` is a byte an activation less than ggml.c uses (its issue 143): before it is "
    "built, write 16 for 15 there and add 64 to wsize"
)

RUNNERS = (
    Runner(
        "bitnet.cpp",
        "October 2024 to May 2026; bitnet-b1.58 from April 2025",
        activations={**_BITNET_CPP, "qwen2": "silu"},
        types={"i2_s": 40, "tl1": 38, "tl2": 39, "tq1_0": 36, "tq2_0": 37, "f32": 0, "f16": 1, "bf16": 32},
        type_ids={"tq1_0": 34, "tq2_0": 35, "i2_s": 36, "tl1": 38, "tl2": 39},
        run=_LLAMA_CLI,
        home="https://github.com/microsoft/BitNet",
        lookups=(*QUANTIZED, "tq1_0", "tq2_0"),
        heads=(*QUANTIZED, "tq1_0", "tq2_0", "i2_s"),
        own_pre=_BITNET_CPP_PRE,
        notes=(
            "TL1 and TL2 need a build with kernels of the same tiles (TL1 on arm64, TL2 on x86); a file with others "
            "is garbage without an error",
            "crashes when it looks up rows of an embedding in I2_S",
        ),
        machines={"i2_s": "x86, and on arm64 before November 2025", "tl1": "arm64", "tl2": "x86"},
        type_notes={"tl1": _TL1_CRASH},
    ),
    Runner(
        "bitnet.cpp-2026",
        "from July 2026 (read; a descendant of it measured)",
        activations={"llama": "silu", "bitnet": "silu", "bitnet-b1.58": "silu", "qwen3 with input norms": "silu"},
        types={"i2_s": 41, "tq2_0": 37, "f32": 0},
        type_ids={"i2_s": 36, "tq2_0": 35, "tl1": 38, "tl2": 42},
        run=_LLAMA_CLI,
        home="https://github.com/microsoft/BitNet",
        release_of="bitnet.cpp",
        unproven={"tl1": 42, "tl2": 43},
        why_unproven="a descendant's TL2 header does not build, and the runner's issue 631 reports a crash",
        notes=("qwen3 with norms on the inputs of the projections, which no other runner has",),
    ),
    Runner(
        "llama.cpp",
        "2026",
        activations={
            "llama": "silu",
            "bitnet": "silu",
            "qwen3": "silu",
            "qwen2": "silu",
            "minicpm": "silu",
            "hunyuan-dense": "silu",
            "maple": "silu",
        },
        types={"tq1_0": 36, "tq2_0": 37, "q2_0": 41, "f32": 0, "f16": 1, "bf16": 32},
        type_ids={"tq1_0": 34, "tq2_0": 35, "q2_0": 42},
        run=_LLAMA_CLI,
        home="https://github.com/ggml-org/llama.cpp",
        lookups=(*QUANTIZED, "tq1_0", "tq2_0", "q2_0"),
        heads=(*QUANTIZED, "tq1_0", "tq2_0", "q2_0"),
        preferred=True,
        scale_tensors=True,
        expert_types=("tq1_0", "tq2_0", "q2_0", *FLOAT_FILE_TYPES),
        rope_lists=True,
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
            "qwen2": "silu",
        },
        types={"iq2_bn": 137, "iq1_bn": 136, "f32": 0, "f16": 1, "bf16": 32},
        type_ids={"iq1_bn": 134, "iq2_bn": 135},
        run=_LLAMA_CLI,
        home="https://github.com/ikawrakow/ik_llama.cpp",
        lookups=QUANTIZED,
        heads=(*QUANTIZED, "iq2_bn", "iq1_bn"),
        min_columns={"iq1_bn": 512, "iq2_bn": 512},
        notes=(
            "loads I2_S and computes garbage; repack such a file to iq2_bn",
            "crashes when it loads TQ1_0 or TQ2_0",
            "looks up rows of an embedding in IQ1_BN and IQ2_BN without their scale",
        ),
    ),
    Runner(
        "bitnet.cpp-arm64",
        "builds for arm64, November 2025 to May 2026",
        activations=_BITNET_CPP,
        types={"i2_s": 40},
        type_ids={"i2_s": 36},
        run=_LLAMA_CLI,
        home="https://github.com/microsoft/BitNet",
        lookups=QUANTIZED,
        heads=QUANTIZED,
        own_pre=_BITNET_CPP_PRE,
        i2_s_order="arm64",
        machine="arm",
        machines={"i2_s": "arm64, from November 2025 on"},
        notes=(
            "reads I2_S in a byte order of its own, and the published one as garbage without an error; its files are "
            "garbage in every other build",
        ),
    ),
)


def runner(name: str) -> Runner:
    return next(r for r in RUNNERS if r.name == name)


def default_runner(type_name: str, architecture: str) -> Runner:
    """The runner that a type implies: the one whose type it is, in the first release that knows the architecture, or
    for floats one that knows it."""
    if type_name in FLOATS:
        return next(r for r in _preferred_first() if architecture in r.activations)
    implied = next(r for r in _preferred_first() if type_name in r.types)
    releases = (r for r in RUNNERS if implied.name in (r.name, r.release_of) and type_name in r.types)
    return next((r for r in releases if architecture in r.activations), implied)


def _preferred_first() -> list[Runner]:
    return sorted(RUNNERS, key=lambda r: not r.preferred)


def pre_obstacle(target: Runner, pre: object) -> str | None:
    """Why a file of this tokenizer.ggml.pre is not for a runner; None where nothing is known against it."""
    if pre in target.own_pre or not any(pre in r.own_pre for r in RUNNERS):
        return None
    return f"tokenizer.ggml.pre is {pre}, which {target.name} does not know or takes for another"


def graph_obstacle(
    target: Runner, architecture: str, activation: str, type_name: str, *, rope_lists: bool = False
) -> str | None:
    """Why a runner would not load a model of this type, or compute it wrong; None where it is right.

    rope_lists: the model has rope factors for long contexts and others for short.
    """
    if architecture not in target.activations:
        cause = f"{target.name} does not know the architecture {architecture}"
    elif target.activations[architecture] != activation:
        cause = (
            f"{target.name} applies {target.activations[architecture]} in the graph of {architecture}, the model needs "
            f"{activation}: it would load and talk nonsense"
        )
    elif type_name in target.unproven:
        cause = f"{target.name} is not known to compute {type_name}: {target.why_unproven}"
    elif type_name not in target.types and type_name not in FLOATS:  # those are for comparisons, whatever computes them
        cause = f"{target.name} does not compute {type_name}"
    elif rope_lists and not target.rope_lists:
        cause = f"{target.name} has one list of rope factors, the model one for long contexts and one for short"
    else:
        return None
    return cause


def nearest(target: Runner, architecture: str, activation: str, type_name: str, *, rope_lists: bool = False) -> str:
    """The way out where graph_obstacle finds one: a type and a runner that work, as near as there are, and a type of
    the same runner."""
    able = [
        (name, r.name)
        for r in RUNNERS
        if r.activations.get(architecture) == activation and (r.rope_lists or not rope_lists)
        for name in r.types
        if name not in FLOATS
    ]
    works = [min(able, key=lambda one: (one[0] != type_name, one[1] != target.name))]
    if works[0][1] != target.name:
        works += [one for one in able if one[1] == target.name][:1]
    named = ", or ".join(f"{option('type', name)} {option('runner', runner_name)}" for name, runner_name in works)
    return f"the nearest that works: {named}"


def layout_for(
    target: Runner,
    name: str,
    shape: tuple[int, int] | None = None,
    tiles: Mapping[tuple[int, int], Tile] | None = None,
    group: int | None = None,
) -> Layout:
    """The layout of a name as a runner has it: see bitconv.layouts.registry.make_layout, and i2_s_order above."""
    from bitconv.layouts.registry import make_layout

    return make_layout(name, shape, tiles, group).in_byte_order(target.i2_s_order)


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

    Ids have been given twice: 42 is Q2_0 in llama.cpp, and TL2 in bitnet.cpp from July 2026. Where the file type does
    not tell, it is the preferred runner's.
    """
    known = [(r, name) for r in _preferred_first() for name, number in r.type_ids.items() if number == type_id]
    of_file_type = (name for r, name in known if (r.types | r.unproven)[name] == file_type)
    return next(of_file_type, known[0][1] if known else None)


def file_types(number: int) -> set[str]:
    """The types that a general.file_type stands for in one runner or another."""
    return {name for r in RUNNERS for name, known in (r.types | r.unproven).items() if known == number}
