"""A trace file's bytes, whole, unpacked and known to be complete; every way that fails is a `TraceError`."""

import gzip
import lzma
import pathlib
import zlib

from nanoserve.specs.errors import TraceError, nearest

_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\x00"


def content_of(path: str) -> bytes:
    """Reads a file, unpacked if it is gzip or xz (found by its first bytes).

    Raises:
      TraceError: if it is missing, a directory, unreadable, empty, or its archive is cut or damaged.
    """
    content = _unpacked(path, _raw(path))
    if not content.strip():
        raise TraceError(f"{path}: the file is empty")
    return content


def text_of(path: str, content: bytes) -> str:
    """Decodes UTF-8, without its byte order mark.

    Raises:
      TraceError: with the line of the first byte that is not text.
    """
    zero = content.find(b"\0")
    try:
        if zero < 0:
            return content.decode("utf-8-sig")
        bad = zero
    except UnicodeDecodeError as error:
        bad = error.start
    line = content.count(b"\n", 0, bad) + 1
    raise TraceError(f"{path}:{line}: byte {content[bad]:#04x} is not text. {_EXPECTED}")


_EXPECTED = "Wanted CSV, JSONL or JSON as UTF-8 (gzip or xz are fine), or Parquet"


def _raw(path: str) -> bytes:
    file = pathlib.Path(path)
    try:
        return file.read_bytes()
    except FileNotFoundError:
        beside = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise TraceError(f"{path}: no such file.{nearest(file.name, beside)}") from None
    except IsADirectoryError:
        raise TraceError(f"{path}: is a directory. Name one trace file inside it") from None
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None


def _unpacked(path: str, raw: bytes) -> bytes:
    try:
        if raw.startswith(_GZIP):
            return gzip.decompress(raw)
        if raw.startswith(_XZ):
            return _unxz(raw)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise TraceError(f"{path}: the archive is cut short or damaged ({error}). Fetch the file again") from None
    return raw


def _unxz(raw: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor()
    content = unpacker.decompress(raw)
    if not unpacker.eof:  # `lzma.decompress` raises too, but only at a block's end
        raise EOFError("the stream has no end")
    return content
