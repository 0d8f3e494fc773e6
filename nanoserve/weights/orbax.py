"""Converted weights kept with orbax: a folder that holds a flat dict of arrays under their Hugging Face names.

Invariants: `save` never overwrites; a read restores one array, the rest of the checkpoint stays on disk. JAX and orbax
are imported when a function here is called, because they take seconds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, override

import numpy as np

from nanoserve.specs.errors import WeightsError
from nanoserve.weights import files, names
from nanoserve.weights.types import TensorSource

_METADATA = "_METADATA"


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder that orbax wrote."""
    return (path / _METADATA).is_file()


def save(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors to the new folder `path`.

    Args:
      path: must not exist; its parent must.
      tensors: arrays by name.

    Raises:
      WeightsError: `path` exists, or cannot be written.
    """
    if path.exists():
        raise WeightsError(f"{path}: exists already. Remove it or choose another folder")
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path.absolute(), dict(tensors))
    except (OSError, ValueError) as e:
        raise WeightsError(f"{path}: weights cannot be saved ({e}). Check the folder and the space on the disk") from e


def restore(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors that `save` wrote to `path`.

    Raises:
      WeightsError: `path` is no such folder, or is damaged.
    """
    source = OrbaxTensors(path)
    return {name: source.read(name) for name in source.names()}


class OrbaxTensors(TensorSource):
    """The tensors in a folder that `save` wrote.

    Raises:
      WeightsError: `path` is no such folder, or is damaged, or holds something other than named arrays.
    """

    def __init__(self, path: Path):
        if not is_checkpoint(path):
            raise WeightsError(
                f"{path}: is not a folder that orbax wrote (no {_METADATA}). Save the weights there first"
            )
        self._path = path.absolute()
        self.description = f"orbax {path}"
        self._arrays = _array_metadata(self._path)

    @override
    def names(self) -> frozenset[str]:
        return frozenset(self._arrays)

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._arrays:
            raise names.unknown_tensor(self, name)
        return tuple(self._arrays[name].shape)

    @override
    def read(self, name: str) -> np.ndarray:
        self.shape(name)
        import orbax.checkpoint as ocp

        wanted = ocp.args.PyTreeRestore(
            item={name: 0}, restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)}, partial_restore=True
        )
        try:
            with _checkpointer() as checkpointer:
                return checkpointer.restore(self._path, args=wanted)[name]
        except Exception as e:  # orbax and tensorstore raise many types for one damaged file
            reason = str(e).partition(" [")[0]  # the rest is tensorstore's whole configuration
            raise WeightsError(
                f"{self._path}: tensor '{name}' cannot be restored ({reason}). Convert the weights again"
            ) from e

    @override
    def fingerprint(self) -> str:
        return files.fingerprint(path for path in self._path.rglob("*") if path.is_file())


def _array_metadata(path: Path) -> Mapping[str, Any]:
    """Name to orbax's shape and dtype."""
    try:
        with _checkpointer() as checkpointer:
            tree = getattr(checkpointer.metadata(path).item_metadata, "tree", None)
    except Exception as e:  # as above
        raise WeightsError(f"{path}: is a damaged orbax checkpoint ({e}). Convert the weights again") from e
    if not isinstance(tree, dict) or not tree or not all(hasattr(leaf, "shape") for leaf in tree.values()):
        raise WeightsError(
            f"{path}: is damaged, or holds something other than weights by name. Save them with `weights.orbax.save`"
        )
    return tree


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    return ocp.PyTreeCheckpointer()
