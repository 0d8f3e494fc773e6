"""The header of a GGUF file (llama.cpp's format): metadata and where each tensor lies, every number checked.

Invariants: every byte is taken by `_Cursor._take`, which compares the length with the bytes that are left, so a
count of 2**63 ends at the end of the file and costs no memory; whatever is wrong is a WeightsError that says where.
The `gguf` package's reader trusts those numbers and makes an array per vocabulary entry (seconds for 49k entries); the
package still supplies the constants and, in `gguf`, the dequantisation.

Source: ggml docs/gguf.md (versions 2 and 3, little endian). Next: `gguf`.
"""

import dataclasses
import itertools
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from nanoserve.specs.errors import WeightsError
from nanoserve.weights.files import reading

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_MAX_SHOWN = 300

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}

Value = bool | int | float | str | list[str] | np.ndarray


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `shape` outermost axis first (the reverse of the file), `offset` from the file's start."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Header:
    """Metadata and tensor directory of the GGUF file at `path`."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Metadata `key`, which must be of `kind`; `default` when absent.

        Raises:
          WeightsError: the value is of another kind, or absent without a default.
        """
        value = self.metadata.get(key, default)
        if value is None:
            raise WeightsError(f"{self.path}: metadata key '{key}' is missing. Convert the model again with llama.cpp")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise WeightsError(
                f"{self.path}: metadata key '{key}' is a {type(value).__name__}, not a {kind.__name__}. "
                "Convert the model again with llama.cpp"
            )
        return value


def read_header(path: Path) -> Header:
    """Reads and checks the header of the GGUF file at `path`; tensor data is not touched.

    Raises:
      WeightsError: not a GGUF file, of an unknown version or tensor type, truncated, or inconsistent.
    """
    with reading(path) as file:
        size = file.seek(0, 2)
        if size < len(MAGIC):
            raise WeightsError(f"{path}: {size} bytes is too short for a GGUF file. Download it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(path, data).header()


class _Cursor:
    """A position in the file that never moves beyond its end."""

    def __init__(self, path: Path, data: mmap.mmap):
        self._path, self._data, self._at = path, data, 0

    def header(self) -> Header:
        magic = self._take(4, "magic")
        if magic != MAGIC:
            raise self._error(f"starts with {magic!r}, not {MAGIC!r}: this is not a GGUF file")
        version = self._int("<I", "version")
        if version not in _VERSIONS:
            raise self._error(f"version {version} is not readable (2 and 3 are, little endian)")
        tensors, keys = self._int("<Q", "tensor count"), self._int("<Q", "metadata count")
        metadata = self._unique((self._key_value() for _ in range(keys)), "metadata key")
        raw = self._unique((self._tensor_info() for _ in range(tensors)), "tensor")
        return Header(self._path, metadata, self._placed(raw, metadata))

    def _error(self, what: str) -> WeightsError:
        # Names from a hostile file may be as long as the file.
        shown = what if len(what) <= _MAX_SHOWN else f"{what[:_MAX_SHOWN]}..."
        return WeightsError(f"{self._path}: at byte {self._at}: {shown}. Download or convert the file again")

    def _left(self) -> int:
        return len(self._data) - self._at

    def _take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self._left():
            raise self._error(f"{what} needs {nbytes} bytes and the file has {self._left()} left")
        self._at += nbytes
        return self._data[self._at - nbytes : self._at]

    def _int(self, format: str, what: str) -> int:
        return struct.unpack(format, self._take(struct.calcsize(format), what))[0]

    def _string(self, what: str) -> str:
        raw = self._take(self._int("<Q", f"length of {what}"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(f"{what} {raw[:40]!r} is not UTF-8") from None

    def _unique(self, pairs, what: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise self._error(f"{what} '{name}' occurs twice")
            found[name] = value
        return found

    def _value_type(self, key: str) -> GGUFValueType:
        raw = self._int("<I", f"type of '{key}'")
        try:
            return GGUFValueType(raw)
        except ValueError:
            raise self._error(f"type {raw} of '{key}' is unknown") from None

    def _key_value(self) -> tuple[str, Value]:
        key = self._string("metadata key")
        kind = self._value_type(key)
        if kind == GGUFValueType.STRING:
            return key, self._string(f"value of '{key}'")
        if kind == GGUFValueType.ARRAY:
            return key, self._array(key)
        return key, self._scalars(kind, 1, key)[0].item()

    def _array(self, key: str) -> list[str] | np.ndarray:
        kind = self._value_type(key)
        if kind == GGUFValueType.ARRAY:
            raise self._error(f"'{key}' is an array of arrays, which no model uses")
        count = self._int("<Q", f"length of '{key}'")
        if kind == GGUFValueType.STRING:
            return [self._string(f"item of '{key}'") for _ in range(count)]
        return self._scalars(kind, count, key)

    def _scalars(self, kind: GGUFValueType, count: int, key: str) -> np.ndarray:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize, f"value of '{key}'"), dtype)

    def _tensor_info(self) -> tuple[str, TensorInfo]:
        """One directory entry, its `offset` still relative to the data section."""
        name = self._string("tensor name")
        dims = self._int("<I", f"axes of '{name}'")
        if not 1 <= dims <= _MAX_DIMS:
            raise self._error(f"tensor '{name}' has {dims} axes (1 to {_MAX_DIMS} are possible)")
        shape = struct.unpack(f"<{dims}Q", self._take(8 * dims, f"shape of '{name}'"))[::-1]
        kind = self._tensor_kind(name)
        block_items, block_bytes = GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block_items:
            raise self._error(f"tensor '{name}' of type {kind.name} cannot have shape {list(shape)}")
        nbytes = math.prod(shape) // block_items * block_bytes
        return name, TensorInfo(shape, kind, self._int("<Q", f"offset of '{name}'"), nbytes)

    def _tensor_kind(self, name: str) -> GGMLQuantizationType:
        raw = self._int("<I", f"type of tensor '{name}'")
        try:
            return GGMLQuantizationType(raw)
        except ValueError:
            raise self._error(f"type {raw} of tensor '{name}' is unknown") from None

    def _placed(self, raw: dict[str, TensorInfo], metadata: Mapping[str, Value]) -> dict[str, TensorInfo]:
        """Checks that tensors lie inside the file, aligned and apart, and makes their offsets absolute."""
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._error(f"general.alignment = {alignment!r} is not a power of two")
        start = -(-self._at // alignment) * alignment
        tensors = {n: dataclasses.replace(t, offset=start + t.offset) for n, t in raw.items()}
        for name, t in tensors.items():
            if t.offset % alignment:
                raise self._error(f"tensor '{name}' starts at byte {t.offset}, not a multiple of {alignment}")
            if t.offset + t.nbytes > len(self._data):
                raise self._error(
                    f"tensor '{name}' ends at byte {t.offset + t.nbytes} of a file of {len(self._data)} bytes"
                )
        by_offset = sorted(tensors.items(), key=lambda item: item[1].offset)
        for (name, t), (other, u) in itertools.pairwise(by_offset):
            if t.offset + t.nbytes > u.offset:
                raise self._error(f"tensors '{name}' and '{other}' overlap")
        return tensors
