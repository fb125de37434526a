"""Reading and writing GGUF, tensor types that the `gguf` package does not know included."""

from bitconv.gguf.reader import MAX_HEADER, GGUFFile, MalformedGGUF, TensorInfo, read_gguf
from bitconv.gguf.types import TensorType, tensor_type, type_by_name
from bitconv.gguf.values import Metadata, Value, value_type
from bitconv.gguf.writer import ALIGNMENT, TensorEntry, align, encode_header

__all__ = [
    "ALIGNMENT",
    "MAX_HEADER",
    "GGUFFile",
    "MalformedGGUF",
    "Metadata",
    "TensorEntry",
    "TensorInfo",
    "TensorType",
    "Value",
    "align",
    "encode_header",
    "read_gguf",
    "tensor_type",
    "type_by_name",
    "value_type",
]
