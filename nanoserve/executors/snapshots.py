"""Snapshots of a run on a disk: an orbax checkpoint each, `PLANS/` in one folder, the newest few kept.

A checkpoint holds a header in JSON, the pickled graph as bytes, and the device arrays. orbax writes it beside its place
and renames it, so a snapshot is whole or has another name; a run that was killed while it wrote one leaves such a name,
which `newest` skips and the next `save` sweeps away. JAX and orbax are imported when a function here is called, because
a run without snapshots needs neither. Next: `nanoserve.engine.snapshot`, which says what a state is.
"""

import dataclasses
import logging
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nanoserve.engine.snapshot import Frozen, Header, Outline
from nanoserve.specs.errors import CapacityError, SnapshotError

_ABOUT, _STATE = "about", "state"


def is_device_array(part: Any) -> bool:
    """Whether something lives on a device: for `engine.snapshot.freeze`."""
    import jax

    return isinstance(part, jax.Array)


def save(folder: Path, plans: int, header: Header, frozen: Frozen, keep: int) -> int:
    """Writes a snapshot, then removes all but the newest.

    Args:
      folder: of a run's snapshots; made if it is not there.
      plans: how many the run had made, the snapshot's name; one of that name stays as it is. header, frozen: what it
        holds.
      keep: how many snapshots stay, this one included.

    Returns:
      Bytes of the snapshot on the disk.

    Raises:
      CapacityError: it cannot be written.
    """
    import orbax.checkpoint as ocp

    arrays = {str(number): part for number, part in enumerate(frozen.arrays)}
    state = {"graph": np.frombuffer(frozen.graph, np.uint8), "arrays": arrays}
    about = {"header": dataclasses.asdict(header), "parts": sorted(frozen.parts)}
    what = ocp.args.Composite(**{_ABOUT: ocp.args.JsonSave(about), _STATE: ocp.args.PyTreeSave(state)})
    path = folder.absolute() / f"{plans:012d}"
    try:
        if not path.exists():
            with _checkpointer() as checkpointer:
                checkpointer.save(path, what)
    except (OSError, ValueError) as error:
        raise CapacityError(
            f"cannot write the snapshot {path}: {error}. Free some space, or turn snapshots off"
        ) from error
    whole, partial = _sorted(folder)
    for old in (*whole[:-keep], *partial):
        shutil.rmtree(old, ignore_errors=True)
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def newest(folder: Path) -> tuple[Path, list[str]]:
    """The newest whole snapshot of a run, and a line for each thing that was skipped on the way to it.

    Raises:
      SnapshotError: there is none.
    """
    whole, partial = _sorted(folder)
    skipped = [f"skipped {path.name}: half-written when the run ended" for path in partial]
    for path in reversed(whole):
        try:
            read_header(path)
        except SnapshotError as error:
            skipped.append(f"skipped {path.name}: {error}")
        else:
            return path, skipped
    found = f" ({'; '.join(skipped)})" if skipped else ""
    raise SnapshotError(
        f"{folder}: there is no snapshot to go on from{found}. Snapshots are taken with Snapshots.interval_s; without "
        "one a run starts anew"
    )


def read_header(path: Path) -> Header:
    """What a snapshot is of.

    Raises:
      SnapshotError: it is damaged.
    """
    with _reading(path):
        return Header(**_about(path)["header"])


def read_state(path: Path, fresh: Outline) -> Frozen:
    """What a snapshot holds, its arrays on the devices that they were on; call it once the header has been compared.

    Args:
      path: of the snapshot.
      fresh: of the engine to be filled. Its own device arrays that the snapshot replaces are freed first, because a
        pool of pages may leave no room for another.

    Raises:
      SnapshotError: it is damaged.
    """
    import orbax.checkpoint as ocp

    with _reading(path), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        place, parts = path.absolute() / _STATE, frozenset(_about(path)["parts"])
        numbers = checkpointer.metadata(place).item_metadata.tree["arrays"]
        wanted = ocp.args.PyTreeRestore(
            item={"graph": 0, "arrays": dict.fromkeys(numbers, 0)},
            restore_args={
                "graph": ocp.RestoreArgs(restore_type=np.ndarray),
                "arrays": {number: _placement(metadata.sharding) for number, metadata in numbers.items()},
            },
        )
        _free([part for path, part in fresh.fixed().items() if path not in parts])
        state = checkpointer.restore(place, wanted)
        found = (state["arrays"][str(number)] for number in range(len(numbers)))
        return Frozen(state["graph"].tobytes(), [_own(part) for part in found], parts)


def remove(folder: Path) -> None:
    """Removes all snapshots of a run that needs them no more."""
    shutil.rmtree(folder, ignore_errors=True)


def _about(path: Path) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with _checkpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), ocp.args.Composite(**{_ABOUT: ocp.args.JsonRestore()}))[_ABOUT]


def _free(parts: Iterable[Any]) -> None:
    import jax

    for leaf in jax.tree.leaves(list(parts)):
        if isinstance(leaf, jax.Array):
            leaf.delete()


def _placement(sharding: Any) -> Any:
    """How to restore an array: with its sharding over a mesh, or as a host array if it was on one device."""
    import jax
    import orbax.checkpoint as ocp

    where = sharding.to_jax_sharding()
    if isinstance(where, jax.sharding.SingleDeviceSharding):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=where)


def _own(part: Any) -> Any:
    """A host array on the one device, as any fresh array lies there: not committed to it, because programs expect that.

    Copied, because a step will be given the buffer to write to, and on a CPU it would be the host array's own.
    """
    import jax.numpy as jnp

    return jnp.array(part) if isinstance(part, np.ndarray) else part


def _sorted(folder: Path) -> tuple[list[Path], list[Path]]:
    """Snapshots, oldest first, and what is left of those that were not finished."""
    found = sorted(path for path in folder.glob("*") if path.is_dir())
    return [path for path in found if path.name.isdigit()], [path for path in found if not path.name.isdigit()]


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what orbax and tensorstore raise for damaged files into one error, and keeps them quiet."""
    talk, before = logging.getLogger("absl"), logging.getLogger("absl").level
    talk.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # many types for one damaged file
        reason = str(error).partition(" [")[0].splitlines()[0]
        raise SnapshotError(f"{path}: is a damaged snapshot ({reason})") from error
    finally:
        talk.setLevel(before)
