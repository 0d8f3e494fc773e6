"""Text to token ids and back, from a Hugging Face `tokenizer.json` or from the metadata of a GGUF file.

Invariants: encoding adds no token by itself, and decoding drops none, so special tokens are visible on both sides; ids
are the checkpoint's. Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) is rebuilt from GGUF metadata; for SentencePiece
models `tokenizer.json` is needed. The work is done by the `tokenizers` library.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from nanoserve.specs.errors import RequestError, WeightsError, nearest
from nanoserve.weights import files
from nanoserve.weights.gguf_header import Header, read_header
from nanoserve.weights.open import is_gguf, locate
from nanoserve.weights.types import Tokenizer

# How text is cut before BPE, by `tokenizer.ggml.pre`: Digits for SmolLM, a regex for the others (llama.cpp
# llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_*; the same regexes are in the models' tokenizer.json).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLIT_REGEX = {"llama-bpe": _WORDS % "{1,3}", "qwen2": _WORDS % ""}
_PRES = ("default", "gpt-2", "smollm", *_SPLIT_REGEX)

# tokenizer.ggml.token_type (llama.cpp llama_token_type).
_CONTROL, _USER_DEFINED = 3, 4


def open_tokenizer(path_or_name: str | Path) -> Tokenizer:
    """Opens the tokenizer that belongs to a checkpoint.

    Args:
      path_or_name: a GGUF file, a `tokenizer.json`, the folder that holds one, or `package:NAME` as in `open_weights`.

    Raises:
      WeightsError: there is no tokenizer, or it is damaged or of a kind that is not supported.
    """
    path = locate(path_or_name)
    if is_gguf(path):
        return _from_gguf(read_header(path))
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"{path}: holds no tokenizer.json. Copy it from the model's page, or give a GGUF file")
    return _from_json(file)


class _LibraryTokenizer:
    """A `tokenizers.Tokenizer` as our protocol."""

    def __init__(self, library: tokenizers.Tokenizer, eos_ids: Sequence[int], prefix_ids: Sequence[int]):
        self._library = library
        # Ids may have gaps, so the largest one counts, not their number.
        self.vocab_size = 1 + max(library.get_vocab(with_added_tokens=True).values(), default=-1)
        self.eos_ids, self.prefix_ids = tuple(eos_ids), tuple(prefix_ids)

    def encode(self, text: str) -> list[int]:
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise RequestError("text holds half of a surrogate pair, which is no character. Send it as valid UTF-8")
        return self._library.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._library.decode(list(ids), skip_special_tokens=False)


def _from_json(file: Path) -> Tokenizer:
    with files.reading(file) as opened:
        text = opened.read()
    try:
        library = tokenizers.Tokenizer.from_buffer(text)
        library.no_truncation()
        library.no_padding()
        prefix_ids = library.encode("", add_special_tokens=True).ids
    except BaseException as e:
        # The library raises bare Exceptions, and panics on a template whose token is missing; a Rust panic is no
        # Exception and its class cannot be imported.
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise WeightsError(f"{file}: is not a tokenizer ({e}). Download it again") from e
    return _LibraryTokenizer(library, _eos_ids_beside(file, library), prefix_ids)


def _eos_ids_beside(file: Path, library: tokenizers.Tokenizer) -> tuple[int, ...]:
    """End tokens, from the first of the files beside `tokenizer.json` that names any."""
    for name, key in (
        ("generation_config.json", "eos_token_id"),
        ("config.json", "eos_token_id"),
        ("tokenizer_config.json", "eos_token"),
    ):
        value = _json_object(file.with_name(name)).get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            value = library.token_to_id(value)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if ids:
            return _checked_ids(ids, library.get_vocab_size(), f"{file.with_name(name)}: {key}")
    return ()


def _json_object(file: Path) -> dict[str, Any]:
    """The object in an optional JSON file; {} where there is no such file."""
    if not file.exists():
        return {}
    with files.reading(file) as opened:
        text = opened.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{file}: is not JSON ({e}). Download it again") from e
    if not isinstance(value, dict):
        raise WeightsError(f"{file}: is not a JSON object. Download it again")
    return value


def _checked_ids(ids: Sequence[Any], vocab_size: int, where: str) -> tuple[int, ...]:
    for i in ids:
        if type(i) is not int or not 0 <= i < vocab_size:
            raise WeightsError(f"{where} = {i!r} is not a token id below {vocab_size}. Download the file again")
    return tuple(ids)


def _from_gguf(header: Header) -> Tokenizer:
    kind = header.get("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise WeightsError(
            f"{header.path}: its tokenizer is of kind '{kind}', and only 'gpt2' (byte-level BPE) is read from GGUF. "
            "Put the model's tokenizer.json in a folder and open that"
        )
    tokens, merges = header.get("tokenizer.ggml.tokens", list), header.get("tokenizer.ggml.merges", list)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise WeightsError(f"{header.path}: tokenizer.ggml.tokens holds a token twice. Convert the model again")
    pre = header.get("tokenizer.ggml.pre", str, "default")
    if pre not in _PRES:
        raise WeightsError(f"{header.path}: tokenizer.ggml.pre '{pre}' is not supported.{nearest(pre, _PRES)}")
    library = tokenizers.Tokenizer(_bpe(header, vocab, merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        library.normalizer = normalizers.NFC()
    library.pre_tokenizer = _pre_tokenizer(pre)
    library.decoder = decoders.ByteLevel()
    types = header.get("tokenizer.ggml.token_type", np.ndarray, np.zeros(0))
    library.add_tokens(
        [
            AddedToken(token, normalized=False, special=bool(token_type == _CONTROL))
            for token, token_type in zip(tokens, types, strict=False)
            if token_type in (_CONTROL, _USER_DEFINED)
        ]
    )
    prefix = _id(header, "bos", vocab) if header.get("tokenizer.ggml.add_bos_token", bool, False) else ()
    ends = dict.fromkeys(_id(header, "eos", vocab) + _id(header, "eot", vocab))
    return _LibraryTokenizer(library, tuple(ends), prefix)


def _bpe(header: Header, vocab: dict[str, int], merges: list[str], ignore_merges: bool) -> models.BPE:
    try:
        pairs = (merge.partition(" ") for merge in merges)
        return models.BPE(vocab, [(left, right) for left, _, right in pairs], ignore_merges=ignore_merges)
    except Exception as e:  # the library raises a bare Exception for a merge outside the vocabulary
        raise WeightsError(f"{header.path}: tokenizer.ggml.merges cannot be used ({e}). Convert the model again") from e


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _SPLIT_REGEX)
    if pre in _SPLIT_REGEX:
        words = pre_tokenizers.Split(Regex(_SPLIT_REGEX[pre]), behavior="isolated")
        return pre_tokenizers.Sequence([words, byte_level])
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    return byte_level


def _id(header: Header, role: str, vocab: dict[str, int]) -> tuple[int, ...]:
    key = f"tokenizer.ggml.{role}_token_id"
    if key not in header.metadata:
        return ()
    return _checked_ids([header.metadata[key]], len(vocab), f"{header.path}: {key}")
