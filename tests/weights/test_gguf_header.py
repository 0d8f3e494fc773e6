"""The GGUF header: equal to the library's reading of good files, a WeightsError for everything else."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanoserve.specs.errors import WeightsError
from nanoserve.weights.gguf import GgufTensors
from nanoserve.weights.gguf_header import read_header
from nanoserve.weights.tokenizer import open_tokenizer
from tests.weights.factories import F32, mutate, only_weights_errors, random_tensors, tiny_spec, write_gguf, write_model

HUGE = (1 << 63) + 1


def header_bytes(tensors: int = 0, keys: int = 0, body: bytes = b"", magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + body


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(
    name: bytes = b"t", shape: tuple[int, ...] = (32,), kind: int = F32, offset: int = 0, dims: int | None = None
):
    return (
        string(name)
        + struct.pack("<I", len(shape) if dims is None else dims)
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


HOSTILE = {
    "empty": b"",
    "three bytes": b"GGU",
    "bad magic": header_bytes(magic=b"GGML"),
    "version 1": header_bytes(version=1),
    "version 4": header_bytes(version=4),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "cut in the counts": header_bytes()[:12],
    "huge tensor count": header_bytes(tensors=HUGE),
    "huge key count": header_bytes(keys=HUGE),
    "key length beyond the file": header_bytes(keys=1, body=string(b"key", HUGE) + b"\0" * 16),
    "key not UTF-8": header_bytes(keys=1, body=string(b"\xff\xfe") + struct.pack("<IB", 0, 1)),
    "key twice": header_bytes(keys=2, body=2 * (string(b"key") + struct.pack("<II", 4, 1))),
    "unknown value type": header_bytes(keys=1, body=string(b"key") + struct.pack("<IQ", 99, 1)),
    "string beyond the file": header_bytes(keys=1, body=string(b"key") + struct.pack("<IQ", 8, HUGE)),
    "array beyond the file": header_bytes(keys=1, body=string(b"key") + struct.pack("<IIQ", 9, 5, HUGE)),
    "array of strings beyond the file": header_bytes(keys=1, body=string(b"key") + struct.pack("<IIQ", 9, 8, HUGE)),
    "array of arrays": header_bytes(keys=1, body=string(b"key") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 12),
    "no axes": header_bytes(tensors=1, body=tensor(shape=()) + b"\0" * 128),
    "four billion axes": header_bytes(tensors=1, body=tensor(dims=(1 << 32) - 1) + b"\0" * 128),
    "empty axis": header_bytes(tensors=1, body=tensor(shape=(32, 0)) + b"\0" * 128),
    "shape overflows 64 bits": header_bytes(tensors=1, body=tensor(shape=(1 << 40, 1 << 40)) + b"\0" * 128),
    "unknown tensor type": header_bytes(tensors=1, body=tensor(kind=250) + b"\0" * 128),
    "row not a whole number of blocks": header_bytes(tensors=1, body=tensor(shape=(33,), kind=8) + b"\0" * 128),
    "tensor beyond the file": header_bytes(tensors=1, body=tensor(offset=1 << 20) + b"\0" * 192),
    "offset near 2^64": header_bytes(tensors=1, body=tensor(offset=(1 << 64) - 32) + b"\0" * 192),
    "unaligned tensor": header_bytes(tensors=1, body=tensor(offset=4) + b"\0" * 192),
    "tensor twice": header_bytes(tensors=2, body=2 * tensor() + b"\0" * 512),
    "overlapping tensors": header_bytes(tensors=2, body=tensor(b"a") + tensor(b"b", offset=32) + b"\0" * 512),
    "alignment zero": header_bytes(keys=1, body=string(b"general.alignment") + struct.pack("<II", 4, 0)),
    "alignment a string": header_bytes(
        keys=1, body=string(b"general.alignment") + struct.pack("<I", 8) + string(b"32")
    ),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_header_is_refused_by_name_without_using_memory(tmp_path, data):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=r"hostile\.gguf"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_helper_of_the_hostile_cases_writes_valid_files(tmp_path):
    path = tmp_path / "good.gguf"
    path.write_bytes(
        header_bytes(tensors=1, keys=1, body=string(b"k") + struct.pack("<II", 4, 7) + tensor() + b"\0" * 192)
    )
    header = read_header(path)
    assert header.metadata == {"k": 7}
    assert header.tensors["t"].shape == (32,)


def test_a_name_as_long_as_the_file_is_not_repeated_in_the_message(tmp_path):
    path = tmp_path / "long.gguf"
    path.write_bytes(header_bytes(keys=1, body=string(b"k" * 100_000) + struct.pack("<I", 99)))
    with pytest.raises(WeightsError, match="kkkk") as caught:
        read_header(path)
    assert len(str(caught.value)) < 1000


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(WeightsError, match="cannot be read"):
            read_header(path)


def assert_same_as_library(path):
    """Our header against the library's reader: every value, shape, type, size and offset."""
    header, reader = read_header(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert header.metadata.keys() == fields.keys()
    for key, value in fields.items():
        ours = header.metadata[key]
        assert (ours.tolist() if isinstance(ours, np.ndarray) else ours) == value, key
    theirs = {t.name: (tuple(t.shape[::-1].tolist()), t.tensor_type, t.data_offset, t.n_bytes) for t in reader.tensors}
    assert {n: (t.shape, t.kind, t.offset, t.nbytes) for n, t in header.tensors.items()} == theirs


def test_header_equals_the_library_reading_for_every_value_type(tmp_path):
    metadata = {
        "a.bool": True,
        "a.int": 7,
        "a.float": 0.5,
        "a.string": "straße",
        "a.strings": ["", "x", "日本"],
        "a.ints": [1, -2, 3],
        "a.floats": [0.25, 1e9],
        "a.bools": [True, False],
    }
    tensors = {"one": np.arange(5, dtype=np.float32), "two": np.ones((3, 4, 2), np.float16)}
    assert_same_as_library(write_gguf(tmp_path / "types.gguf", "llama", metadata, tensors))


def test_header_equals_the_library_reading_for_a_model(tmp_path):
    spec = tiny_spec()
    assert_same_as_library(write_model(tmp_path / "model.gguf", spec, random_tensors(spec)))


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    spec = tiny_spec(layers=1)
    path = write_model(tmp_path_factory.mktemp("fuzz") / "model.gguf", spec, random_tensors(spec))
    data = path.read_bytes()
    return path.with_name("damaged.gguf"), data, read_header(path)


def _read_tensors(path) -> None:
    source = GgufTensors(path)
    for name in source.names():
        assert source.read(name).shape == source.shape(name)


def _use_tokenizer(path) -> None:
    open_tokenizer(path).encode("the <|end|> of 12")


EDITS = st.lists(st.tuples(st.integers(0, 1 << 13), st.integers(0, 255)), max_size=4)


@settings(max_examples=200, derandomize=True)
@given(edits=EDITS, keep=st.one_of(st.just(1 << 30), st.integers(0, 1 << 13)))
@example(edits=[], keep=1 << 30)
def test_a_damaged_file_raises_nothing_but_weights_error(valid, edits, keep):
    path, data, _ = valid
    path.write_bytes(mutate(data, edits, keep))
    only_weights_errors(_read_tensors, path)
    only_weights_errors(_use_tokenizer, path)


def test_every_truncation_is_refused(valid):
    path, data, header = valid
    end = max(t.offset + t.nbytes for t in header.tensors.values())
    for keep in [*range(0, 256), *range(256, end, 997), end - 1]:
        path.write_bytes(data[:keep])
        with pytest.raises(WeightsError):
            read_header(path)
