"""Where the tensors lie in a file that torch.save wrote: found without torch, and without reading a weight.

Since torch 1.6 such a file is a zip archive of uncompressed members (torch/serialization.py,
caffe2/serialize/inline_container.cc): data.pkl is a pickle in which every tensor names its storage, data/KEY holds
the bytes of one storage, row-major and in the byte order that the member byteorder names. Tied weights share one.

A pickle may name any function of any module, and have it called. The rule here is that of
torch.load(weights_only=True), narrowed to what a state dict of plain tensors takes: a pickle that asks for anything
else is refused by name, and nothing that it names is imported, let alone called.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import open_input

# torch's storage classes -> (our dtype, bytes).
_DTYPES = {
    "DoubleStorage": ("f64", 8),
    "FloatStorage": ("f32", 4),
    "HalfStorage": ("f16", 2),
    "BFloat16Storage": ("bf16", 2),
    "LongStorage": ("i64", 8),
    "IntStorage": ("i32", 4),
    "ShortStorage": ("i16", 2),
    "CharStorage": ("i8", 1),
    "ByteStorage": ("u8", 1),
    "BoolStorage": ("bool", 1),
}
# The pickle of a model of thousands of tensors takes less than a megabyte.
_MAX_PICKLE = 1 << 26
_SAVE_AGAIN = "load and save it again with a current torch: torch.save(torch.load(FILE, weights_only=True), FILE)"


class TorchTensor(NamedTuple):
    """dtype: as in bitconv.checkpoint. offset: in bytes from the start of the file, row-major, little endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_index(file: Path, within: Path | None = None) -> list[TorchTensor]:
    """Every tensor of a state dict.

    BitconvError where the file is none, or damaged, or where its pickle asks for more than tensors; where a tensor
    is not contiguous; where the file is big-endian, compressed, or in the format of torch before 1.6.
    """
    with os.fdopen(open_input(file, within), "rb") as stream:
        try:
            start = stream.read(4)
            if start[:1] == pickle.PROTO:
                raise BitconvError(
                    "is in the format of torch before 1.6, without an index",
                    code=Code.FORMAT,
                    file=file,
                    way_out=_SAVE_AGAIN,
                )
            if start != b"PK\x03\x04":
                raise BitconvError("is not a file that torch.save wrote", code=Code.FORMAT, file=file)
            with zipfile.ZipFile(stream) as archive:
                return _Reader(file, stream, archive).tensors()
        except BitconvError:
            raise
        except Exception as error:  # whatever damage makes zipfile and pickle raise, and seek to where no file reaches
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise BitconvError(
                f"truncated or damaged ({cause})", code=Code.DAMAGED, file=file, way_out="download the checkpoint again"
            ) from None


class _Storage(NamedTuple):
    dtype: str
    itemsize: int
    key: str
    length: int


class _Tensor(NamedTuple):
    """offset and strides: in elements of the storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Function:
    """A function that a pickle may call and cannot change, as it could a bare one (BUILD sets attributes)."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("a state for a function")


class _StateDict(dict[Any, Any]):
    """Stands for every dict. What torch hangs on to it (_metadata: versions of modules) is dropped."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()

    def __setitem__(self, key: object, value: object) -> None:
        if not isinstance(key, str | int):  # to hash a tuple in a tuple in a tuple and so on overflows the stack
            raise ValueError(f"{type(key).__name__} for a name")
        super().__setitem__(key, value)

    def __setstate__(self, state: object) -> None:
        pass


class _Reader:
    def __init__(self, file: Path, stream: BinaryIO, archive: zipfile.ZipFile) -> None:
        self.file = file
        self.stream = stream
        self.archive = archive
        # torch puts all members in one folder, whose name it does not care for.
        self.folder = archive.namelist()[0].partition("/")[0] if archive.namelist() else ""
        self.size = stream.seek(0, io.SEEK_END)

    def tensors(self) -> list[TorchTensor]:
        if self.member("byteorder") is not None and self.read("byteorder") != b"little":
            raise BitconvError(
                "is big-endian", code=Code.FORMAT, file=self.file, way_out=f"{_SAVE_AGAIN} on a little-endian machine"
            )
        state = _Unpickler(self.file, self.read("data.pkl")).load()
        if not isinstance(state, dict) or not state:
            raise BitconvError("holds no state dict (tensors by name)", code=Code.FORMAT, file=self.file)
        return [self.place(name, value) for name, value in state.items()]

    def place(self, name: object, value: object) -> TorchTensor:
        """Where a tensor's bytes are, if they are as they must be."""
        if not (isinstance(value, _Tensor) and isinstance(name, str) and name.isprintable()):
            raise BitconvError(
                f"{name!r:.80}: holds no tensor, so this is no state dict", code=Code.FORMAT, file=self.file
            )
        storage, offset, shape, strides = value
        if not _is_row_major(shape, strides):
            raise BitconvError(
                f"not contiguous (shape {shape}, strides {strides})",
                code=Code.TENSOR_FORM,
                file=self.file,
                tensor=name,
                way_out="save it again with tensor.contiguous()",
            )
        member = f"data/{storage.key}"
        start, size = self.span(member)
        if size != storage.length * storage.itemsize or offset + prod(shape) > storage.length:
            raise BitconvError(
                f"damaged: it does not fit into its {size} bytes ({member})",
                code=Code.DAMAGED,
                file=self.file,
                tensor=name,
            )
        return TorchTensor(name, storage.dtype, shape, start + offset * storage.itemsize)

    def member(self, name: str) -> zipfile.ZipInfo | None:
        return self.archive.NameToInfo.get(f"{self.folder}/{name}")

    def read(self, name: str) -> bytes:
        start, size = self.span(name)
        if size > _MAX_PICKLE:
            raise BitconvError(
                f"{name} takes {size} bytes, more than that of any checkpoint", code=Code.TOO_LARGE, file=self.file
            )
        self.stream.seek(start)
        return self.stream.read(size)

    def span(self, name: str) -> tuple[int, int]:
        """Offset in the file and size of a member, in bytes."""
        member = self.member(name)
        if member is None:
            raise BitconvError(
                f"holds no {name}: not a file that torch.save wrote, or damaged", code=Code.DAMAGED, file=self.file
            )
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise BitconvError(
                f"{name} is compressed or encrypted, which torch does not do",
                code=Code.FORMAT,
                file=self.file,
                way_out=_SAVE_AGAIN,
            )
        # The header before the data repeats the name and pads to 64 bytes, of which the directory knows nothing.
        at = member.header_offset
        self.stream.seek(at if 0 <= at < self.size else self.size)
        header = self.stream.read(30)
        start = at + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        if header[:4] != b"PK\x03\x04" or start + member.file_size > self.size:
            raise BitconvError(
                f"truncated or damaged at {name}",
                code=Code.DAMAGED,
                file=self.file,
                way_out="download the checkpoint again",
            )
        return start, member.file_size


class _Unpickler(pickle._Unpickler):
    """_NAMES are all that a pickle can get hold of.

    The one in Python: that in C has dicts of its own, and makes a list as long as the highest number that a pickle
    gives an object.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in b"".join((pickle.DICT, pickle.EMPTY_SET, pickle.FROZENSET))  # of any keys
    } | {pickle.EMPTY_DICT[0]: lambda self: self.append(_StateDict())}

    def __init__(self, file: Path, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.file = file

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name in _DTYPES:
            return name
        known = _NAMES.get((module, name))
        if known is None:
            asked = ascii(f"{module}.{name}")
            raise BitconvError(
                f"its pickle asks for {asked:.200}, which no plain state dict needs; it was not run",
                code=Code.UNSAFE,
                file=self.file,
            )
        return known

    def persistent_load(self, reference: Any) -> _Storage:
        kind, storage_type, key, _, length = reference
        named = isinstance(storage_type, str) and isinstance(key, str)
        if kind != "storage" or not (named and key.isdecimal() and _is_size(length)):
            raise ValueError("not a storage")
        return _Storage(*_DTYPES[storage_type], key, length)


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: Any, strides: Any, requires_grad: object, hooks: object, bits: object = None
) -> _Tensor:
    shape, strides = tuple(shape), tuple(strides)
    if not (isinstance(storage, _Storage) and all(map(_is_size, (offset, *shape, *strides))) and not bits):
        raise ValueError("not a plain tensor")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: object, *_: object) -> object:
    return tensor


def _rebuild_from_type(rebuild: Any, kind: object, arguments: Any, state: object) -> object:
    return rebuild(*arguments)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


_NAMES: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _StateDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_rebuild_parameter),
    # A tensor that has attributes of its own.
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_rebuild_from_type),
    ("torch", "Tensor"): "Tensor",
    ("torch.nn.parameter", "Parameter"): "Parameter",
}
