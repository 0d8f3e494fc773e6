"""Hugging Face checkpoints in the safetensors format: one file, or a folder of shards with an index.

Invariants: the `safetensors` library checks each header against its file when it is opened; the index may only name
files inside the folder; Phi-3's fused matrices are offered under the split names, and a read touches only its own rows;
Mixtral's experts have the names of Qwen3-MoE's.
Next: `names` for what a model needs of a checkpoint.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, override

import numpy as np
from safetensors import SafetensorError, safe_open

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.models import ModelSpec
from nanoserve.weights import files, names
from nanoserve.weights.types import TensorSource

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MIXTRAL = ".block_sparse_moe."
_RENAMED = {_MIXTRAL: ".mlp.", ".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."}


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor lies: `stored` name in `path`, and the rows of it that it takes (None: all, any rank)."""

    path: Path
    stored: str
    rows: slice | None = None


class SafetensorsTensors(TensorSource):
    """The tensors of a safetensors file or folder.

    Args:
      path: a .safetensors file, or a folder with `model.safetensors` or an index and its shards.
      spec: the model; needed to split fused matrices (Phi-3), which otherwise keep their stored names.

    Raises:
      WeightsError: a file is missing, truncated or damaged, or the index does not describe its shards.
    """

    def __init__(self, path: Path, spec: ModelSpec | None = None):
        self.description = f"safetensors {path}"
        self._files: dict[Path, Any] = {}
        found = self._folder(path) if path.is_dir() else self._file(path)
        self._places = {_renamed(name): place for name, place in found.items()}
        if spec is not None:
            for whole, parts in _fused_parts(spec).items():
                for name in [name for name in self._places if whole in name]:
                    self._split(name, whole, parts)

    @override
    def names(self) -> frozenset[str]:
        return frozenset(self._places)

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        place = self._place(name)
        shape = tuple(self._stored(place).get_shape())
        return shape if place.rows is None else (place.rows.stop - place.rows.start, *shape[1:])

    @override
    def read(self, name: str) -> np.ndarray:
        place = self._place(name)
        try:
            if place.rows is None:
                return self._files[place.path].get_tensor(place.stored)
            return self._stored(place)[place.rows]
        except (SafetensorError, AttributeError, TypeError, OSError) as e:
            # NumPy has no 4- and 8-bit floats; the library's NumPy reader then fails looking for the type.
            kind = self._stored(place).get_dtype()
            raise WeightsError(f"{place.path}: tensor '{name}' of type {kind} cannot be read ({e})") from e

    @override
    def fingerprint(self) -> str:
        return files.fingerprint(self._files)

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise names.unknown_tensor(self, name)
        return self._places[name]

    def _stored(self, place: _Place) -> Any:
        return self._files[place.path].get_slice(place.stored)

    def _split(self, name: str, whole: str, parts: Mapping[str, int]) -> None:
        """Offers the rows of the fused tensor `name` under the names of its parts instead."""
        shape, rows = self.shape(name), sum(parts.values())
        if shape[:1] != (rows,):
            raise WeightsError(
                f"{self.description}: fused tensor '{name}' has shape {list(shape)}, but the model's parts of it have "
                f"{rows} rows. Name the model these weights belong to"
            )
        place, start = self._places.pop(name), 0
        for part, rows in parts.items():
            self._places[name.replace(whole, part)] = dataclasses.replace(place, rows=slice(start, start + rows))
            start += rows

    def _file(self, path: Path) -> dict[str, _Place]:
        """Opens one file and lists its tensors."""
        with files.reading(path):
            pass  # a missing or unreadable file is reported as such; the library would call it damaged
        try:
            self._files[path] = safe_open(path, framework="numpy")
            return {name: _Place(path, name) for name in self._files[path].keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as e:
            raise WeightsError(f"{path}: is damaged or not a safetensors file ({e}). Download it again") from e

    def _folder(self, folder: Path) -> dict[str, _Place]:
        if not (folder / INDEX).exists():
            return self._file(folder / SINGLE)
        wanted = _read_index(folder / INDEX)
        found: dict[str, _Place] = {}
        for shard in sorted(set(wanted.values())):
            found |= self._file(folder / shard)
        for name, shard in wanted.items():
            if name not in found or found[name].path != folder / shard:
                raise WeightsError(
                    f"{folder / INDEX}: says tensor '{name}' is in {shard}, which lacks it. Download both again"
                )
        return {name: found[name] for name in wanted}


def _renamed(name: str) -> str:
    """A tensor's name here; only Mixtral's experts have another in the file."""
    if _MIXTRAL in name:
        for stored, ours in _RENAMED.items():
            name = name.replace(stored, ours)
    return name


def _read_index(path: Path) -> Mapping[str, str]:
    """Tensor name to shard file name, each a plain file name."""
    with files.reading(path) as file:
        text = file.read()
    try:
        index = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: is not JSON ({e}). Download it again") from e
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{path}: has no 'weight_map' of tensor names to files. Download it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard or shard in (".", "..") or "\0" in shard or set(shard) & set("/\\"):
            raise WeightsError(f"{path}: tensor '{name}' is in {shard!r}, which is not a file name in this folder")
    return weight_map


def _fused_parts(spec: ModelSpec) -> dict[str, dict[str, int]]:
    """Phi-3's fused matrices: the part of the name to replace, by which names, each with its rows, in stacked order."""
    q, kv = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    return {
        ".self_attn.qkv_proj.": {".self_attn.q_proj.": q, ".self_attn.k_proj.": kv, ".self_attn.v_proj.": kv},
        ".mlp.gate_up_proj.": {".mlp.gate_proj.": spec.ffn, ".mlp.up_proj.": spec.ffn},
    }
