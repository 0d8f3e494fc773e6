"""Checkpoint files on disk: opening, reading by offset, and fingerprints. Every failure is a WeightsError.

Next: `safetensors` and `gguf`, which know what the bytes mean.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nanoserve.specs.errors import WeightsError

WHOLE_FILE_BYTES = 1 << 30
_SAMPLES = 256
_SAMPLE_BYTES = 1 << 20


@contextlib.contextmanager
def reading(path: Path) -> Iterator[io.BufferedReader]:
    """Opens `path` for reading and turns what the operating system objects to into a WeightsError."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror or e}). Check the path and its permissions") from e


def read_at(path: Path, offset: int, nbytes: int) -> bytearray:
    """Exactly `nbytes` bytes of `path` from `offset`, in a buffer that is the caller's to keep and change.

    Raises:
      WeightsError: the file ends before, or cannot be read.
    """
    data = bytearray(nbytes)
    with reading(path) as file:
        file.seek(offset)
        found = file.readinto(data)
    if found != nbytes:
        raise WeightsError(f"{path}: ends before byte {offset + nbytes}. It changed while in use; download it again")
    return data


def fingerprint(paths: Iterable[Path]) -> str:
    """Identifies the content of one file or several, whatever folder they lie in.

    One file below 1 GiB gives what `sha256sum` prints. A larger file gives `sampled-` and the sha256 of its size and of
    256 evenly spaced MiB, first and last included: a fine-tune changes every one of them, and 140 GB need not be read.
    Several files give `files-` and the sha256 over their names in that folder and single fingerprints.

    Raises:
      WeightsError: a file cannot be read.
    """
    each = sorted((path, _file_fingerprint(path)) for path in paths)
    if len(each) == 1:
        return each[0][1]
    folder = os.path.commonpath([path.parent for path, _ in each])
    listing = "".join(f"{path.relative_to(folder)}\0{digest}\n" for path, digest in each)
    return "files-" + hashlib.sha256(listing.encode()).hexdigest()


def _file_fingerprint(path: Path) -> str:
    with reading(path) as file:
        size = file.seek(0, 2)
        if size < WHOLE_FILE_BYTES:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        for i in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
        return "sampled-" + digest.hexdigest()
