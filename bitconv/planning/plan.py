"""Every tensor of the file with its type, size and place, known before a byte of weights is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from bitconv import backends, runners
from bitconv.checkpoint.directory import Checkpoint
from bitconv.gguf import MAX_HEADER, Metadata
from bitconv.layouts import FLOATS, PACKED
from bitconv.layouts.layout import Layout
from bitconv.layouts.registry import TILED, check_has_tiles
from bitconv.layouts.scales import group_of, scale_obstacle
from bitconv.layouts.tiles import Tile
from bitconv.models.architectures import Role, scale_name
from bitconv.models.weights import DenseWeight, ExpertsWeight, Model, TernaryWeight, Weight
from bitconv.packed import embeddings
from bitconv.packed.embeddings import EMBEDDING, HEAD
from bitconv.packed.keys import Level, name_findings
from bitconv.planning.metadata import build_metadata
from bitconv.planning.placement import DataSection, PlacedMatrix
from bitconv.runners import Runner
from bitconv.system.errors import BitconvError, Code, option, plain
from bitconv.system.patterns import PatternError, compile_pattern
from bitconv.tokenizer.notes import tokenizer_notes


@dataclass(frozen=True)
class Options:
    """What a user chooses about a file.

    type: of the ternary tensors, or "auto". runner: None for the one that the type implies. backend: the processor that
    will run the file, None for any. embed_type: of the embedding and an untied head, None for what the preset says.
    head_type: of the head alone, None for embed_type. fallback: for a tensor whose shape
    or scales the type cannot take. overrides: (regular expression, type) for names of tensors; the first that is found
    in a name decides. tiles: of TL1 and TL2 by (rows, columns); None for bitconv's choice. scale_in_blocks: the classic
    form of llama.cpp's layouts, even where the runner takes exact scales. pre: tokenizer.ggml.pre, None for the one
    recognised.
    """

    type: str = "i2_s"
    runner: str | None = None
    backend: str | None = None
    preset: str = "exact"
    embed_type: str | None = None
    head_type: str | None = None
    fallback: str = "error"
    overrides: tuple[tuple[str, str], ...] = ()
    tiles: Mapping[tuple[int, int], Tile] | None = None
    scale_in_blocks: bool = False
    pre: str | None = None

    @property
    def ternary_embeddings(self) -> set[str]:
        """Which of the embedding and the head may become ternary, where they are."""
        return {name for name in (EMBEDDING, HEAD) if self.embedding_type(name) in (None, *PACKED)}

    def embedding_type(self, name: str) -> str | None:
        """Of the embedding or the head; None for the smallest."""
        chosen = _override(name, self) or (self.head_type if name == HEAD else None) or self.embed_type
        return chosen or ("f16" if self.preset == "exact" else None)


@dataclass(frozen=True)
class PlannedTensor:
    """offset: in bytes from the start of the data section.

    places: of the matrices of a ternary tensor, one or one an expert. fallback: why it does not have the type asked
    for.
    """

    weight: Weight
    type_name: str
    offset: int
    nbytes: int
    places: tuple[PlacedMatrix, ...] = ()
    fallback: str | None = None


@dataclass(frozen=True)
class Plan:
    """header: the bytes before the data section. size: of the whole file, in bytes. reason: why this type, if auto.

    notes: what the user should know of the file though it is right, in words.
    """

    model: Model
    runner: Runner
    type_name: str
    header: bytes
    tensors: tuple[PlannedTensor, ...]
    size: int
    reason: str | None
    notes: tuple[str, ...]

    @property
    def data_offset(self) -> int:
        """Where the data section starts in the file."""
        return len(self.header)


def make_plan(checkpoint: Checkpoint, model: Model, options: Options) -> Plan:
    """Lay out the file. BitconvError where the runner would not load it or would compute it wrong."""
    _check(options)
    _check_patterns(model, options)
    _check_head(model, options)
    type_name, target, reason = _type_and_runner(model, options)
    section = DataSection(target, scale_in_blocks=options.scale_in_blocks)
    scale_slots = model.family.architecture.scale_slots(model.sizes)
    tensors: list[PlannedTensor] = []
    for weight in model.weights:
        if isinstance(weight, TernaryWeight):
            layout, fallback = _layout(model, weight, type_name, target, options)
            group = group_of(weight.scale, weight.shape[1])
            beside = scale_name(weight.name) in scale_slots
            place = section.place_ternary(weight.name, weight.shape, layout, group, beside=beside)
            tensors.append(PlannedTensor(weight, layout.name, place.offset, place.nbytes, (place,), fallback))
        elif isinstance(weight, ExpertsWeight):
            # All have the same shape, and the one whose scales are the most decides for all.
            matrix = max(weight.matrices, key=_scale_count)
            layout, fallback = _layout(model, matrix, type_name, target, options, len(weight.matrices))
            beside, group = scale_name(weight.name) in scale_slots, group_of(matrix.scale, matrix.shape[1])
            places = section.place_experts(weight.name, weight.shape, layout, group, beside=beside)
            nbytes = sum(place.nbytes for place in places)
            tensors.append(PlannedTensor(weight, layout.name, places[0].offset, nbytes, tuple(places), fallback))
        elif isinstance(weight, DenseWeight) and weight.role is Role.TERNARY:
            name = _override(weight.name, options) or options.fallback
            if name not in FLOATS:
                raise weight.stored.error(
                    f"it is not ternary, which {name} is for",
                    code=Code.LAYOUT,
                    way_out=f"leave it to {option('fallback', 'f16')}",
                )
            section.floats.append(weight.name)
            offset, nbytes = section.place_dense(weight.name, weight.shape, name)
            tensors.append(PlannedTensor(weight, name, offset, nbytes, fallback="it is not ternary"))
        elif isinstance(weight, DenseWeight) and weight.role is Role.EMBEDDING:
            name = _embedding_type(weight, model, type_name, target, options)
            if name in PACKED:
                form = weight.ternary
                assert form is not None
                layout, group = runners.layout_for(target, name), group_of(form.scale, form.shape[1])
                beside = scale_name(form.name) in scale_slots
                place = section.place_ternary(form.name, form.shape, layout, group, beside=beside)
                tensors.append(PlannedTensor(form, name, place.offset, place.nbytes, (place,)))
            else:
                tensors.append(PlannedTensor(weight, name, *section.place_dense(weight.name, weight.shape, name)))
        else:
            tensors.append(PlannedTensor(weight, "f32", *section.place_dense(weight.name, weight.shape, "f32")))
    ternary = {tensor.type_name for tensor in tensors if tensor.places and tensor.weight.name not in (EMBEDDING, HEAD)}
    ternary |= {tensor.type_name for tensor in tensors if tensor.fallback}
    # Where every tensor fell back, the file is of what they fell back to.
    file_type = target.file_type(type_name if type_name in ternary else min(ternary))
    metadata = build_metadata(checkpoint, model, file_type, options.pre)
    header = section.header(metadata)
    if len(header) > MAX_HEADER:
        cause = f"its vocabulary takes more than the {MAX_HEADER >> 20} MiB that a file's header may have"
        raise BitconvError(cause, code=Code.TOO_LARGE, file=checkpoint.path)
    notes = [*_rope_notes(model), *tokenizer_notes(checkpoint.path, model.config, metadata)]
    notes += _name_notes(metadata, checkpoint)
    notes += [*target.notes_on(type_name), *_machine_notes(model, type_name, target, options)]
    return Plan(model, target, type_name, header, tuple(tensors), len(header) + section.size, reason, tuple(notes))


def _scale_count(weight: TernaryWeight) -> int:
    return weight.scale.size if isinstance(weight.scale, np.ndarray) else 1


def _name_notes(metadata: Metadata, checkpoint: Checkpoint) -> list[str]:
    """What runners read out of the name; BitconvError where they do not load the file for it."""
    way_out = "name it otherwise: by model_name in the front matter of README.md"
    said = f"general.name, {plain(metadata['general.name'])}, " if "general.name" in metadata else ""
    notes = []
    for finding in name_findings(metadata):
        if finding.level is Level.REFUSED:
            raise BitconvError(f"{said}{finding.text}", code=Code.RUNNER, file=checkpoint.path, way_out=way_out)
        notes.append(f"{said}{finding.text}; if that is not the model's own way, {way_out}")
    return notes


def _rope_notes(model: Model) -> list[str]:
    long = model.sizes.rope_long
    if long is None:
        return []
    return [
        f"longrope: with room for more than {long.original_context} tokens (-c) llama.cpp takes the factors for long "
        "contexts for short texts too, as the model's own code does not"
    ]


def _machine_notes(model: Model, type_name: str, target: Runner, options: Options) -> list[str]:
    """What is said of the machine that will run the file: the one named, or this one."""
    backend = options.backend or backends.this_machine()
    if backend is None or type_name in FLOATS:
        return []
    notes = []
    others = [r.name for r in runners.RUNNERS if r.machine == backend and type_name in r.types]
    if others and target.machine is None and type_name in target.machines:
        notes.append(
            f"this file is for {target.name} on {target.machines[type_name]}: newer builds compute garbage of it and "
            f"need one for the runner {others[0]}"
        )
    candidates = _exact(model, replace(options, runner=target.name, scale_in_blocks=False))
    ranked = [(rank, name) for _, name, _ in candidates if (rank := backends.rank(target.name, name, backend))]
    here = options.backend is None
    faster = backends.why_faster(target.name, min(ranked)[1], type_name, backend, here=here) if ranked else None
    slow = backends.why_not(target.name, type_name, backend) if options.backend is not None else None
    return [*notes, *filter(None, (faster or slow,))]


def _check(options: Options) -> None:
    types = {options.type, *(name for _, name in options.overrides)}
    if options.tiles is not None:
        check_has_tiles(types)
    tiled = [name for name in TILED if name in types]
    if len(tiled) > 1:
        cause = f"{' and '.join(tiled)} in one file: no build of a runner computes both"
        raise BitconvError(cause, code=Code.OPTIONS)
    for pattern, _ in options.overrides:
        _compiled(pattern)


def _check_patterns(model: Model, options: Options) -> None:
    choices = [weight.name for weight in model.weights if _has_choice(weight)]
    for pattern, _ in options.overrides:
        if not any(_compiled(pattern).search(name) for name in choices):
            raise BitconvError(
                f"{option('tensor_types', pattern[:80])} is found in the name of no tensor whose type can be chosen: "
                "a projection, the embedding or an untied head",
                code=Code.USAGE,
            )


def _check_head(model: Model, options: Options) -> None:
    if options.head_type is not None and not _has_head(model):
        raise BitconvError(
            f"{option('head_type', options.head_type)}: the model has no head, it multiplies by the embedding",
            code=Code.OPTIONS,
            way_out=f"pass {option('embed_type', options.head_type)}",
        )


def _has_choice(weight: Weight) -> bool:
    if isinstance(weight, DenseWeight):
        return weight.role in (Role.EMBEDDING, Role.TERNARY)  # norms are f32: bitnet.cpp aborts on others
    return isinstance(weight, TernaryWeight | ExpertsWeight)


def _type_and_runner(model: Model, options: Options) -> tuple[str, Runner, str | None]:
    architecture = model.family.architecture
    if options.type == "auto":
        return _smallest_exact(model, options) if options.backend is None else _fastest_exact(model, options)
    if options.runner is None:
        target = runners.default_runner(options.type, architecture.graph)
        if options.type in FLOATS:  # the reference of all comparisons, whatever computes it
            return options.type, target, None
    else:
        target = runners.runner(options.runner)
    obstacle = _graph_obstacle(model, target, options.type)
    if obstacle is not None:
        lists = model.sizes.rope_long is not None
        way_out = runners.nearest(target, architecture.graph, architecture.activation, options.type, rope_lists=lists)
        raise BitconvError(obstacle, code=Code.RUNNER, way_out=way_out)
    return options.type, target, None


def _graph_obstacle(model: Model, target: Runner, type_name: str) -> str | None:
    architecture, lists = model.family.architecture, model.sizes.rope_long is not None
    return runners.graph_obstacle(target, architecture.graph, architecture.activation, type_name, rope_lists=lists)


def _smallest_exact(model: Model, options: Options) -> tuple[str, Runner, str]:
    """The layout of the fewest bytes that keeps every scale exact, in the runner asked for or in any."""
    size, name, target = min(_some_exact(model, options), key=lambda candidate: candidate[0])
    return (
        name,
        target,
        f"{_bits(model, size, name)}, the smallest exact layout that {target.name} computes for these shapes",
    )


def _fastest_exact(model: Model, options: Options) -> tuple[str, Runner, str]:
    """The same of the layout that is computed fastest on the backend asked for, as far as that is known."""
    backend = options.backend
    assert backend is not None
    ranked = [
        (rank, not target.preferred, target.machine is None, size, name, target)
        for size, name, target in _some_exact(model, options)
        if (rank := backends.rank(target.name, name, backend))
    ]
    if not ranked:
        raise BitconvError(
            f"{option('backend', backend)}: nothing is known there in {options.runner or 'any runner'} that computes a "
            "type which takes every tensor of this model with its exact scale",
            code=Code.RUNNER,
            way_out=f"{option('type', 'auto')} without it takes the smallest, which the CPU computes",
        )
    *_, size, name, target = min(ranked, key=lambda one: one[:4])
    cell = backends.find_cell(target.name, name, backend)
    assert cell is not None
    what = "the fastest exact type that is known" if cell.speed is backends.Speed.FAST else "in generic code"
    return name, target, f"{_bits(model, size, name)}, {what} on {backend}, in {target.name} ({cell.source})"


def _bits(model: Model, size: int, name: str) -> str:
    return f"{name}: {size * 8 / sum(rows * columns for rows, columns in _shapes(model)):.4g} bits a weight"


def _shapes(model: Model) -> list[tuple[int, int]]:
    return [weight.shape for weight in model.matrices]


def _some_exact(model: Model, options: Options) -> list[tuple[int, str, Runner]]:
    """BitconvError where there is none."""
    candidates = _exact(model, options)
    if not candidates:
        raise BitconvError(
            f"{option('type', 'auto')}: no packed layout of {options.runner or 'any runner'} takes every tensor of "
            f"this model with its exact scale, {' and '.join(TILED)} left out, which need a build for its shapes",
            code=Code.LAYOUT,
            way_out=f"name a {option('type', 'TYPE')}, with {option('fallback', 'f16')} for the tensors that it cannot "
            "take",
        )
    return candidates


def _exact(model: Model, options: Options) -> list[tuple[int, str, Runner]]:
    """The size, name and runner of every layout that keeps every scale exact, in the runner asked for or in any.

    TL1 and TL2 are left out: they run only in a build made for the model's shapes.
    """
    weights, shapes = model.matrices, _shapes(model)
    scale_slots = model.family.architecture.scale_slots(model.sizes)
    candidates = []
    for target in _candidates(options):
        for name in (name for name in PACKED if name not in TILED):
            layout = runners.layout_for(target, name)
            beside = layout.scale_beside and target.scale_tensors and not options.scale_in_blocks
            if _graph_obstacle(model, target, name):
                continue
            if model.sizes.experts and name not in target.expert_types:
                continue

            def is_exact(weight: TernaryWeight, layout: Layout = layout, beside: bool = beside) -> bool:
                if layout.exact_scale or (beside and scale_name(weight.name) in scale_slots):
                    return True
                # Of several, each is held as it is, or the layout has no room for them.
                scale = weight.scale
                return isinstance(scale, np.ndarray) or (
                    isinstance(scale, np.float32) and bool(layout.stored_scale(scale) == scale)
                )

            if any(_obstacle(weight, target, layout) or not is_exact(weight) for weight in weights):
                continue
            candidates.append((sum(layout.nbytes(*shape) for shape in shapes), name, target))
    return candidates


def _candidates(options: Options) -> list[Runner]:
    """The runners among which a type is chosen: all but those of another machine, where none is named."""
    if options.runner is not None:
        return [runners.runner(options.runner)]
    return [target for target in runners.RUNNERS if target.machine in (None, options.backend)]


def _embedding_type(weight: DenseWeight, model: Model, type_name: str, target: Runner, options: Options) -> str:
    """Of the embedding or a head. The smallest: a ternary type where it is ternary, that of the file before others."""
    parameter = "head_type" if weight.name == HEAD and options.head_type is not None else "embed_type"
    has_head, form = _has_head(model), weight.ternary

    def cannot_hold(name: str) -> str | None:
        if form is None:
            return f"it is not ternary, and {name} holds nothing else"
        return _obstacle(form, target, runners.layout_for(target, name))

    fitting = [
        name
        for name in PACKED
        if embeddings.obstacle(target, weight.name, name, weight.shape, has_head=has_head) is None
        and cannot_hold(name) is None
    ]
    fitting.sort(key=lambda name: (name != type_name, runners.layout_for(target, name).nbytes(*weight.shape)))
    name = options.embedding_type(weight.name) or next(iter(fitting), "q6_k")
    embeddings.check(target, weight.name, name, weight.shape, has_head=has_head, parameter=parameter)
    obstacle = cannot_hold(name) if name in PACKED else None
    if obstacle is not None:
        way_out = f"pass {option(parameter, next(iter(fitting), 'q6_k'))}"
        raise weight.stored.error(obstacle, code=Code.LAYOUT, way_out=way_out)
    return name


def _has_head(model: Model) -> bool:
    return any(weight.name == HEAD for weight in model.weights)


def _override(name: str, options: Options) -> str | None:
    return next((type_name for pattern, type_name in options.overrides if _compiled(pattern).search(name)), None)


@cache
def _compiled(pattern: str) -> Any:
    try:
        return compile_pattern(pattern)
    except PatternError as error:
        raise BitconvError(
            f"{option('tensor_types', pattern[:80])} is not a regular expression of RE2's: {error}", code=Code.USAGE
        ) from None


def _layout(
    model: Model, weight: TernaryWeight, type_name: str, target: Runner, options: Options, experts: int = 0
) -> tuple[Layout, str | None]:
    """The layout of one ternary tensor, or of a stack of so many, and why it is not the one asked for."""
    override = _override(weight.name, options)
    name = override or type_name
    if override is not None and name not in FLOATS and name not in target.computes:
        raise BitconvError(f"{target.name} does not compute {name}", code=Code.RUNNER, tensor=weight.name)
    group = group_of(weight.scale, weight.shape[1])
    code, ways_out = Code.LAYOUT, list[str]()
    try:
        layout = runners.layout_for(target, name, weight.shape, options.tiles, group)
        obstacle = _obstacle(weight, target, layout, experts)
    except BitconvError as error:
        obstacle, code = error.cause, error.code
        ways_out += filter(None, (error.way_out,))
    if obstacle is None:
        return layout, None

    def usable(fallback: str) -> bool:
        return _obstacle(weight, target, runners.layout_for(target, fallback, group=group), experts) is None

    if options.fallback == "error" or not usable(options.fallback):
        if experts and layout.name not in target.expert_types:
            ways_out.append(runners.experts_way_out())
        ways_out += filter(None, (_better_type(model, options),))
        floats = next((name for name in ("f16", "bf16", "f32") if usable(name)), None)
        if floats is not None:
            ways_out.append(f"{option('fallback', floats)} keeps it in floats")
        raise weight.stored.error(obstacle, code=code, way_out="; ".join(ways_out) or None)
    return runners.layout_for(target, options.fallback, group=group), obstacle


def _better_type(model: Model, options: Options) -> str | None:
    """The smallest type that holds all of the model, in the runner asked for or in another, in words."""
    for runner in dict.fromkeys((options.runner, None)):
        try:
            name, target, _ = _smallest_exact(model, replace(options, runner=runner))
        except BitconvError:
            continue
        other = f" {option('runner', target.name)}" if options.runner not in (None, target.name) else ""
        return f"{option('type', name)}{other} holds all tensors with their exact scales, for {target.name}"
    return None


def _obstacle(weight: TernaryWeight, target: Runner, layout: Layout, experts: int = 0) -> str | None:
    """Why the layout cannot take the weight's shape or its scales in a runner, alone or in a stack of experts."""
    shape = runners.shape_obstacle(target, layout, *weight.shape, experts)
    return shape or scale_obstacle(layout, weight.scale, weight.shape[1])
