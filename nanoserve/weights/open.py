"""Opens a checkpoint by what it contains: a GGUF file, a safetensors file or folder, or a folder that orbax wrote.

`package:NAME` is the one GGUF file inside the installed Python distribution NAME, which is found without importing it.
Next: `gguf`, `safetensors`, `orbax`, and `tokenizer.open_tokenizer` for the text side of the same path.
"""

import importlib.metadata
from pathlib import Path

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.models import ModelSpec
from nanoserve.weights import files, gguf_header
from nanoserve.weights.names import check_tensors
from nanoserve.weights.types import TensorSource

PACKAGE_PREFIX = "package:"


def open_weights(path_or_name: str | Path, spec: ModelSpec | None = None) -> TensorSource:
    """Opens a checkpoint; only headers are read.

    Args:
      path_or_name: a path, or `package:NAME`.
      spec: the model the weights must belong to; None accepts any.

    Returns:
      The tensors under Hugging Face names.

    Raises:
      WeightsError: nothing readable is there, or the tensors are not those of `spec`.
    """
    path = locate(path_or_name)
    source = _open_path(path, spec)
    if spec is not None:
        check_tensors(source, spec)
    return source


def spec_of(path_or_name: str | Path) -> ModelSpec:
    """The shape of the model at a path: from the GGUF's metadata, or from `config.json` beside the weights.

    Raises:
      WeightsError: there is neither, or it describes a model that nanoserve does not compute.
    """
    path = locate(path_or_name)
    if is_gguf(path):
        from nanoserve.weights.gguf_spec import spec_from_gguf

        return spec_from_gguf(path)
    from nanoserve.specs.huggingface import read_config

    return read_config(path if path.is_dir() else path.parent)


def locate(path_or_name: str | Path) -> Path:
    """The existing path that `path_or_name` means.

    Raises:
      WeightsError: there is no such path, or no such distribution with one GGUF file in it.
    """
    text = str(path_or_name)
    if text.startswith(PACKAGE_PREFIX):
        return _in_distribution(text.removeprefix(PACKAGE_PREFIX))
    path = Path(text).expanduser()
    if "\0" in text or not path.exists():
        raise WeightsError(f"{path}: no such file or folder. Give a path to weights, or '{PACKAGE_PREFIX}NAME'")
    return path


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file that starts with GGUF's magic."""
    if not path.is_file():
        return False
    with files.reading(path) as file:
        return file.read(len(gguf_header.MAGIC)) == gguf_header.MAGIC


def _open_path(path: Path, spec: ModelSpec | None) -> TensorSource:
    if is_gguf(path):
        from nanoserve.weights.gguf import GgufTensors

        return GgufTensors(path)
    from nanoserve.weights import orbax, safetensors

    if path.is_file():
        return safetensors.SafetensorsTensors(path, spec)
    if orbax.is_checkpoint(path):
        return orbax.OrbaxTensors(path)
    if any((path / name).exists() for name in (safetensors.INDEX, safetensors.SINGLE)):
        return safetensors.SafetensorsTensors(path, spec)
    ggufs = sorted(path.glob("*.gguf"))
    hint = f" Give the file itself: {ggufs[0]}" if ggufs else " Give the folder that holds one of these"
    raise WeightsError(
        f"{path}: holds neither {safetensors.SINGLE}, {safetensors.INDEX} nor an orbax checkpoint.{hint}"
    )


def _in_distribution(name: str) -> Path:
    advice = "Run `make`, which installs the example weights, or install the package that holds them"
    try:
        recorded = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError) as e:
        raise WeightsError(f"{PACKAGE_PREFIX}{name}: Python package '{name}' is not installed. {advice}") from e
    ggufs = [Path(str(f.locate())) for f in recorded if f.suffix == ".gguf"]
    if len(ggufs) != 1:
        raise WeightsError(
            f"{PACKAGE_PREFIX}{name}: holds {len(ggufs)} GGUF files, and exactly one is needed. {advice}"
        )
    return ggufs[0]
