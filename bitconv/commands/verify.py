"""Proving a file right: alone, or against the checkpoint that it claims to be."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from bitconv.checkpoint.dense import dense_values
from bitconv.checkpoint.directory import Checkpoint
from bitconv.gguf import GGUFFile, MalformedGGUF, TensorInfo, read_gguf, type_by_name
from bitconv.layouts import DENSE_TYPES, FLOATS, QUANTIZED
from bitconv.layouts.layout import Bytes, Layout
from bitconv.layouts.tiles import read_kernel_config
from bitconv.models.architectures import Role, scale_name
from bitconv.models.hyperparameters import UnsupportedMetadata
from bitconv.models.quantization import rule_of, scale_convention_of
from bitconv.models.ternary_floats import settle_scales, ternary_form
from bitconv.models.trits import TritReader
from bitconv.models.weights import DenseWeight, ExpertsWeight, Model, TernaryWeight, Weight
from bitconv.packed.digest import TensorDigest, TensorHash, model_digests
from bitconv.packed.inspection import Inspection, inspect_file
from bitconv.packed.keys import Level
from bitconv.packed.tensor_checks import (
    ANOTHER_ARITHMETIC,
    MatrixCheck,
    OtherTensor,
    check_finite,
    compare_values,
    within,
)
from bitconv.packed.ternary_tensor import FaultyTensor, matrices
from bitconv.system import jobs
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import MAX_FAULTS, BitconvError, Code, first_lines, option, reports_system_errors
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.rawio import read_at
from bitconv.system.results import Result

# A job checks this many values of a dense tensor, whole blocks of every type: large ones are split, for the threads to
# share.
_JOB_VALUES = 1 << 22

NOT_COVERED = (
    "the graph: whether a runner computes this architecture and these types right",
    "the tokenizer: whether a runner splits text with this vocabulary as the model's own tokenizer does",
    "the chat template and the sampling settings: whether a runner can make sense of them",
)


@dataclass(frozen=True)
class VerifiedTensor:
    """A tensor that was checked.

    Attributes:
        scale: Of a ternary tensor that has one.
        group: The columns of a row that share a scale, where it has several.
        faults: Empty where the tensor is right.
        warnings: What is unusual and changes nothing that is computed.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    scale: float | None
    group: int | None
    faults: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passed:
    """How many of what was checked passed. Nothing that belongs to a faulty tensor counts as passed."""

    passed: int
    of: int


@dataclass(frozen=True)
class Digests:
    """SHA-256 of all trits, and of all trits and scales, whatever the layouts: docs/verification.md."""

    trits: str
    trits_and_scales: str


@dataclass(frozen=True, repr=False)
class Verification(Result):
    """What was found. docs/verification.schema.json describes its JSON.

    Attributes:
        faults: Those of the file as a whole: the first MAX_FAULTS, and how many more there are.
        warnings: The same of what is unusual.
        checked: What was checked.
        not_covered: What was not.
        digests: None where a ternary tensor could not be read.
        strict: Warnings are faults.
    """

    file: Path
    against: str | None
    architecture: str | None
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    tensors: tuple[VerifiedTensor, ...]
    checked: dict[str, Passed]
    not_covered: tuple[str, ...]
    digests: Digests | None
    strict: bool = False

    @property
    def right(self) -> bool:
        holders: tuple[Verification | VerifiedTensor, ...] = (self, *self.tensors)
        return not any(holder.faults or (self.strict and holder.warnings) for holder in holders)


@reports_system_errors
def verify(
    file: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    scale_convention: str | None = None,
    ternarize: str | None = None,
    group: int | None = None,
    pre: str | None = None,
    kernel_config: str | os.PathLike[str] | None = None,
    i2_s_order: str | None = None,
    strict: bool = False,
    attestation: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check a GGUF file of a BitNet model.

    Alone: its structure; every code, scale and float valid; and for every ternary tensor that the kernel's product over
    the packed bytes with random int8 activations equals that of the unpacked matrix, in int32 and scaled to float32,
    bit for bit. Against a checkpoint: also every trit, every scale, every dense value after rounding to the file's
    type, every size and the vocabulary.

    Args:
        file: The GGUF file.
        against: A Hugging Face model, as `convert` takes it, that the file must equal.
        revision: As `convert` takes it.
        token: As `convert` takes it.
        scale_convention: As `convert` takes it.
        ternarize: As `convert` takes it.
        group: As `convert` takes it.
        pre: As `convert` takes it.
        kernel_config: The ini with the tiles of a TL1 or TL2 file that does not record them.
        i2_s_order: "arm64" or "row4" for an I2_S file in the byte order of such a build that does not record it;
            "published" overrules a record.
        strict: Warnings are faults.
        attestation: The .intoto.json that `convert` wrote. The file is made again of the checkpoint with its options,
            and must have the same bytes.
        threads: All cores where None.
        progress: Called with the bytes so far and in all of each pass: of float weights that are looked at, then of
            the file.

    Returns:
        What was found; `right` is the verdict.

    Raises:
        BitconvError: Where the file cannot be judged: not GGUF, unreadable, an architecture or type not supported.

    Example:
        >>> bitconv.verify("llama.gguf", against="fixtures/Llama3-1.58-tiny").right
        True
    """
    for name, value in (
        ("revision", revision),
        ("token", token),
        ("scale_convention", scale_convention),
        ("ternarize", ternarize),
        ("group", group),
        ("pre", pre),
        ("attestation", attestation),
    ):
        if against is None and value is not None:
            raise BitconvError(
                f"{option(name)} is for {option('against', 'MODEL')}, which is missing", code=Code.OPTIONS
            )
    path = Path(file)
    unsupported: str | None = None
    inspection = None
    try:
        opened = read_gguf(path)
        tiles = None if kernel_config is None else read_kernel_config(Path(kernel_config))
        inspection = inspect_file(opened, tiles, i2_s_order)
    except MalformedGGUF as fault:
        return _of_a_header(path, None, str(fault), strict=strict)
    except UnsupportedMetadata as fault:
        if against is None:
            raise
        unsupported = str(fault)
    if against is None:
        assert inspection is not None
        return _Verifier(opened, inspection, None, None, strict=strict).run(threads, progress)
    # What a file alone needs none of.
    from bitconv.models.model import load_model
    from bitconv.models.opening import open_checkpoint

    with open_checkpoint(against, revision, token) as checkpoint:
        convention = scale_convention_of(scale_convention)
        loaded = load_model(checkpoint, convention)
        if inspection is None:
            assert unsupported is not None
            return _of_a_header(path, checkpoint, f"{unsupported}, nor asked for by the checkpoint", strict=strict)
        model = settle_scales(
            checkpoint, loaded, rule_of(ternarize, group), threads, convention, keep_floats=True, progress=progress
        )
        verifier = _Verifier(opened, inspection, checkpoint, model, strict=strict)
        verifier.compare_metadata(pre)
        result = verifier.run(threads, progress)
        return result if attestation is None else _with_attestation(result, Path(attestation), checkpoint, threads)


def _with_attestation(
    result: Verification, attestation: Path, checkpoint: Checkpoint, threads: int | None
) -> Verification:
    from bitconv.commands.attest import made_again  # which itself verifies

    faults = tuple(made_again(result.file, attestation, checkpoint, threads))
    checked = {**result.checked, "attestations: made again to the same bytes": Passed(0 if faults else 1, 1)}
    return replace(result, faults=(*result.faults, *faults), checked=checked)


def _of_a_header(path: Path, checkpoint: Checkpoint | None, fault: str, *, strict: bool) -> Verification:
    """The verdict on a file of which no more can be read."""
    against = None if checkpoint is None else str(checkpoint.path)
    return Verification(path, against, None, (fault,), (), (), {}, NOT_COVERED, None, strict)


class _Verifier:
    def __init__(
        self,
        opened: GGUFFile,
        inspection: Inspection,
        checkpoint: Checkpoint | None,
        model: Model | None,
        *,
        strict: bool,
    ) -> None:
        self.opened = opened
        self.inspection = inspection
        self.checkpoint = checkpoint
        self.strict = strict
        self.faults = list(inspection.faults)
        self.lost: list[str] = []  # of the checkpoint's tokenizer, since no file can hold it
        self.metadata = list(inspection.metadata)
        self.expected: dict[str, Weight] = {} if model is None else {w.name: w for w in model.weights}
        self.model = model
        self.scale_tensors = {t.name: t for t in opened.tensors if inspection.roles[t.name] is Role.SCALE}
        self.digests: list[TensorDigest] = []
        self.other_tensors: set[str] = set()  # whose trits, or shape, are not the checkpoint's
        self.made_by: dict[str, set[str]] = {}  # of those, what would have made the trits of each matrix
        self.descriptor = -1

    def compare_metadata(self, pre: str | None) -> None:
        from bitconv.planning.agreement import compare_metadata  # with the gguf package, which takes long to import

        assert self.checkpoint is not None and self.model is not None
        found = compare_metadata(self.opened.metadata, self.inspection, self.checkpoint, self.model, pre)
        self.metadata, self.lost = found.findings, found.lost
        if found.architecture is not None:
            self.faults.append(found.architecture)
            return
        for tensor in self.expected.keys() - {tensor.name for tensor in self.opened.tensors}:
            self.faults.append(f"tensor {tensor} is missing; the checkpoint has it")

    def run(self, threads: int | None, progress: Progress | None) -> Verification:
        parts = [part for tensor in self.opened.tensors for part in self._parts(tensor)]
        work = [partial(self.tensor, *part) for part in parts]
        total = sum(self.inspection.nbytes.values())
        done = 0
        found: dict[str, VerifiedTensor] = {}
        self.descriptor = self.opened.open()
        try:
            for (tensor, first, last), result in zip(parts, jobs.run(work, threads), strict=True):
                if not found.setdefault(result.name, result).faults:  # of several parts, what the first fault says
                    found[result.name] = result
                done += result.nbytes * (last - first) // prod(tensor.shape)
                if progress is not None:
                    progress(done, total)
        finally:
            os.close(self.descriptor)
        results = list(found.values())
        self.opened.check_unchanged()
        if self.checkpoint is not None:
            self.checkpoint.check_unchanged()
        ternary = {name for name in self.inspection.layouts if self.inspection.roles[name] is Role.TERNARY}
        faults = [*self.faults, *(f"{f.key} {f.text}" for f in self.metadata if f.level is not Level.WARNING)]
        same_architecture = self.model is not None and self.model.family.architecture is self.inspection.architecture
        if same_architecture and 2 * len(ternary.intersection(self.other_tensors)) > len(ternary):
            differ = f"{len(self.other_tensors)} of {len(results)} tensors are not the checkpoint's"
            faults.insert(0, self._made_by() or f"this looks like another model: {differ}")
        complete = len(self.digests) == len(ternary)
        return Verification(
            file=self.opened.path,
            against=None if self.checkpoint is None else str(self.checkpoint.path),
            architecture=self.inspection.architecture_name,
            faults=first_lines(faults),
            warnings=first_lines([f"{f.key} {f.text}" for f in self.metadata if f.level is Level.WARNING]),
            tensors=tuple(results),
            checked=self._checked(results),
            not_covered=(*NOT_COVERED, *self._not_covered()),
            digests=Digests(*model_digests(self.digests)) if complete and self.digests else None,
            strict=self.strict,
        )

    def _made_by(self) -> str | None:
        """What made all the trits that are not the checkpoint's, where one thing did; None where none is known to."""
        makers = set.intersection(*(self.made_by.get(name, set()) for name in self.other_tensors))
        if ANOTHER_ARITHMETIC in makers:
            return (
                "its trits differ from the packed checkpoint's in few places, and none by its sign: both may be of the "
                "same latents by two arithmetics, which bitconv audit tells of the latents"
            )
        rules = sorted(makers)
        return (
            f"the rule {rules[0]} makes every trit of the checkpoint's latents: name it as the rule" if rules else None
        )

    def _not_covered(self) -> list[str]:
        """What of the checkpoint no file can hold, and dense tensors of types that bitconv does not write."""
        types = self.inspection.types
        values = [
            f"the values of {tensor.name}, which is {types[tensor.name]}"
            for tensor in self.opened.tensors
            if types[tensor.name] not in DENSE_TYPES and tensor.name not in self.inspection.layouts
        ]
        return self.lost + values[:MAX_FAULTS]

    def _checked(self, results: list[VerifiedTensor]) -> dict[str, Passed]:
        ternary = [t for t in results if t.name in self.inspection.layouts]
        floats = [t for t in results if t.type in FLOATS and t not in ternary]
        quantized = [t for t in results if t.type in QUANTIZED and t not in ternary]
        faulty = {finding.key for finding in self.metadata if finding.level is not Level.WARNING}

        def passed(tensors: list[VerifiedTensor], count: Callable[[VerifiedTensor], int]) -> Passed:
            return Passed(sum(count(t) for t in tensors if not t.faults), sum(map(count, tensors)))

        def scales(tensor: VerifiedTensor) -> int:
            return 1 if tensor.group is None else prod(tensor.shape) // tensor.group

        def same_scales(tensor: VerifiedTensor) -> int:
            return scales(tensor) if not tensor.warnings else 0

        keys = self.opened.metadata.keys()
        checked = {
            "metadata keys": Passed(len(keys - faulty), len(keys)),
            "tensors placed, typed and shaped": Passed(
                sum(t.name not in self.inspection.tensor_faults for t in results), len(results)
            ),
            "ternary tensors whose kernel product equals the unpacked product": passed(ternary, lambda _: 1),
            "trits valid": passed(ternary, lambda t: prod(t.shape)),
            "scales finite and positive": passed(ternary, scales),
            "floats finite": passed(floats, lambda t: prod(t.shape)),
        }
        if quantized:
            checked["quantized blocks whose scales are finite"] = passed(
                quantized, lambda t: prod(t.shape) // type_by_name(t.type).block
            )
        if self.checkpoint is not None:
            checked["trits equal to the checkpoint's"] = passed(ternary, lambda t: prod(t.shape))
            checked["scales equal to the checkpoint's"] = Passed(
                passed(ternary, same_scales).passed, sum(map(scales, ternary))
            )
            checked["dense values equal to the checkpoint's"] = passed([*floats, *quantized], lambda t: prod(t.shape))
        return checked

    def _parts(self, tensor: TensorInfo) -> Iterator[tuple[TensorInfo, int, int]]:
        """What jobs take: a tensor, and the first and the last (exclusive) of its values."""
        count = step = prod(tensor.shape)
        whole = tensor.name in self.inspection.layouts or tensor.name in self.inspection.tensor_faults
        if not whole and not self._is_redundant_head(tensor):
            step = _JOB_VALUES
        for first in range(0, count, step):
            yield tensor, first, min(first + step, count)

    def tensor(self, tensor: TensorInfo, first: int, last: int, keep_going: KeepGoing) -> VerifiedTensor:
        """All checks of a part of one tensor's data."""
        type_name = self.inspection.types[tensor.name]
        nbytes = self.inspection.nbytes[tensor.name]
        faults = list(self.inspection.tensor_faults.get(tensor.name, ()))
        if scale_name(tensor.name) in self.inspection.tensor_faults:
            faults.append(f"{scale_name(tensor.name)} is faulty")
        scale = None
        warnings: list[str] = []
        if not faults:
            try:
                scale = self._data(tensor, first, last, warnings, keep_going)
            except FaultyTensor as fault:
                faults.append(str(fault))
                if isinstance(fault, OtherTensor):
                    self.other_tensors.add(tensor.name)
        group = self.inspection.groups.get(tensor.name)
        return VerifiedTensor(
            tensor.name, type_name, tensor.shape, nbytes, scale, group, tuple(faults), tuple(warnings[:1])
        )

    def _data(
        self, tensor: TensorInfo, first: int, last: int, warnings: list[str], keep_going: KeepGoing
    ) -> float | None:
        if self.inspection.roles[tensor.name] is Role.SCALE:  # read with its weight
            return None
        expected = self.expected.get(tensor.name)
        if expected is None and tensor.name == "output.weight":
            expected = self.expected.get("token_embd.weight")
        if self.model is not None and expected is None:
            raise FaultyTensor("the checkpoint has no such tensor")
        if expected is not None and expected.shape != tensor.shape:
            raise OtherTensor(f"has shape {tensor.shape}, the checkpoint's is {expected.shape}")
        layout = self.inspection.layouts.get(tensor.name)
        if layout is not None and isinstance(expected, DenseWeight) and expected.role is Role.EMBEDDING:
            assert self.checkpoint is not None
            expected = ternary_form(self.checkpoint, expected, keep_going)
            if expected is None:
                raise OtherTensor("is ternary, and the checkpoint's is not")
        in_floats = isinstance(expected, DenseWeight) and expected.role is Role.TERNARY
        if expected is not None and in_floats is not (tensor.name in self.inspection.floats):
            raise FaultyTensor(f"its values are {'not ' if in_floats else ''}ternary in the checkpoint alone")
        if layout is not None:
            scale = self._ternary(tensor, layout, expected, warnings, keep_going)
            return None if scale is None else float(scale)
        if self._is_redundant_head(tensor):
            self._redundant_head(tensor, keep_going)
        if self.inspection.types[tensor.name] in DENSE_TYPES:
            self._dense(tensor, expected, first, last, keep_going)
        return None

    def _ternary(
        self,
        tensor: TensorInfo,
        layout: Layout,
        expected: Weight | None,
        warnings: list[str],
        keep_going: KeepGoing,
    ) -> np.float32 | None:
        """Returns the scale of a matrix, None of a stack of them. Hashes what is not the checkpoint's all the same."""
        assert expected is None or isinstance(expected, TernaryWeight | ExpertsWeight)
        scale_tensor = self.scale_tensors.get(scale_name(tensor.name))
        group = self.inspection.groups.get(tensor.name)
        files = list(matrices(self.descriptor, tensor, layout, scale_tensor, group))
        hasher = TensorHash(tensor.name, tensor.shape, layout)
        faults: list[FaultyTensor] = []
        for i, file in enumerate(files):
            reader = self._reader(None if expected is None else expected.matrices[i], keep_going)
            matrix = MatrixCheck(file, reader, hasher, exact=scale_tensor is not None)
            try:
                fault = matrix.check(tensor.name, keep_going)
            except FaultyTensor as unreadable:
                raise within(unreadable, i, len(files)) from None
            warnings += matrix.warnings
            if matrix.made_by:
                self.made_by[tensor.name] = self.made_by.get(tensor.name, matrix.made_by) & matrix.made_by
            if fault is not None:
                faults.append(within(fault, i, len(files)))
        if self.inspection.roles[tensor.name] is Role.TERNARY:
            self.digests.append(hasher.result())
        for fault in faults:
            raise fault
        return files[0].scale if len(files) == 1 else None

    def _is_redundant_head(self, tensor: TensorInfo) -> bool:
        return tensor.name == "output.weight" and not self.inspection.architecture.untied_head

    def _redundant_head(self, head: TensorInfo, keep_going: KeepGoing) -> None:
        """A head on a graph that multiplies by the embedding is right only where it is the embedding, byte for byte."""
        embedding = next((t for t in self.opened.tensors if t.name == "token_embd.weight"), None)
        nbytes = self.inspection.nbytes[head.name]
        if embedding is not None and embedding.type_id == head.type_id:
            for first, last in row_blocks(nbytes, 1, 1):
                keep_going()
                if not np.array_equal(
                    self._read(head, first, last - first), self._read(embedding, first, last - first)
                ):
                    break
            else:
                return
        raise FaultyTensor("differs from token_embd.weight, which the graph multiplies by in its place")

    def _dense(self, tensor: TensorInfo, expected: Weight | None, start: int, end: int, keep_going: KeepGoing) -> None:
        kind = type_by_name(self.inspection.types[tensor.name])
        for at, until in row_blocks(end - start, 1, kind.block):
            first, last = start + at, start + until
            keep_going()
            raw = self._read(tensor, kind.nbytes((first,)), kind.nbytes((last - first,)))
            check_finite(raw, kind, first, tensor.shape)
            if isinstance(expected, DenseWeight):
                assert self.checkpoint is not None
                wanted = dense_values(self.checkpoint, expected.stored, kind.name, first, last)
                compare_values(raw, wanted, kind, first, tensor.shape)
            elif expected is not None:
                assert not isinstance(expected, TernaryWeight | ExpertsWeight)
                compare_values(raw, expected.values[first:last].view(np.uint8), kind, first, tensor.shape)

    def _reader(self, expected: TernaryWeight | None, keep_going: KeepGoing) -> TritReader | None:
        if expected is None:
            return None
        assert self.checkpoint is not None
        return TritReader(self.checkpoint, expected, keep_going)

    def _read(self, tensor: TensorInfo, start: int, count: int) -> Bytes:
        raw = np.empty(count, np.uint8)
        if not read_at(self.descriptor, raw, tensor.offset + start):
            raise FaultyTensor("the file has become shorter while it was read")
        return raw
