"""Safetensors folders: what was saved comes back; a damaged or hostile one is a WeightsError naming the file."""

import functools
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.models import MoeSpec
from nanoserve.weights.safetensors import INDEX, SINGLE, SafetensorsTensors
from tests.weights.factories import mutate, only_weights_errors, random_tensors, tiny_spec

SPEC = tiny_spec(layers=1, family="phi3")


def raw_file(header: object, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), start: int = 0, end: int = 8) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HOSTILE = {
    "empty": b"",
    "length cut": b"\x08\0\0",
    "length 2^63": raw_file({"a": entry()}, length=1 << 63),
    "length beyond the file": raw_file({"a": entry()}, length=1 << 20),
    "not JSON": raw_file(b"{not json"),
    "not an object": raw_file([1, 2]),
    "deep JSON": raw_file(b"[" * 100_000),
    "entry not an object": raw_file({"a": 3}),
    "unknown type": raw_file({"a": entry(dtype="F99")}),
    "negative axis": raw_file({"a": entry(shape=(-2,))}),
    "shape overflows": raw_file({"a": entry(shape=(1 << 62, 1 << 62))}),
    "shape against offsets": raw_file({"a": entry(shape=(3,))}),
    "offsets beyond the file": raw_file({"a": entry(shape=(1 << 20,), end=1 << 22)}),
    "overlapping offsets": raw_file({"a": entry(), "b": entry(start=4, end=12)}, b"\0" * 12),
    "truncated data": raw_file({"a": entry()}, b"\0" * 7),
    "data nobody owns": raw_file({"a": entry()}, b"\0" * 9),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_refused_by_name_without_using_memory(tmp_path, data):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=r"hostile\.safetensors.*Download it again"):
            SafetensorsTensors(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_helper_of_the_hostile_cases_writes_valid_files(tmp_path):
    path = tmp_path / "good.safetensors"
    path.write_bytes(raw_file({"a": entry()}))
    np.testing.assert_array_equal(SafetensorsTensors(path).read("a"), np.zeros(2, np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    array = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    save_file({"a": array, "scalar": np.ones((), dtype)}, tmp_path / "m.safetensors")
    source = SafetensorsTensors(tmp_path / "m.safetensors")
    found = source.read("a")
    assert found.dtype == dtype
    assert (source.shape("a"), source.shape("scalar")) == ((3, 4), ())
    assert found.tobytes() == array.tobytes()


def test_a_type_that_numpy_lacks_is_refused_when_read(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_file({"a": entry(dtype="F8_E4M3", shape=(8,))}))
    with pytest.raises(WeightsError, match=r"'a' of type F8_E4M3"):
        SafetensorsTensors(path).read("a")


def write_shards(folder, tensors, shards: int = 3) -> dict[str, str]:
    """Saves tensors round robin over shards with an index; returns the index's map."""
    weight_map = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == shard}, folder / shard)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_sharded_folder_reads_as_one(tmp_path):
    tensors = random_tensors(SPEC)
    write_shards(tmp_path, tensors)
    source = SafetensorsTensors(tmp_path)
    assert source.names() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(source.read(name), array)


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path, random_tensors(SPEC))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-1\.safetensors: cannot be read"):
        SafetensorsTensors(tmp_path)


def test_an_index_that_names_an_absent_tensor_is_refused(tmp_path):
    weight_map = write_shards(tmp_path, random_tensors(SPEC))
    write_index(tmp_path, weight_map | {"model.ghost.weight": "model-0.safetensors"})
    with pytest.raises(WeightsError, match=r"'model\.ghost\.weight' is in model-0\.safetensors, which lacks it"):
        SafetensorsTensors(tmp_path)


def test_an_index_that_names_the_wrong_shard_is_refused(tmp_path):
    weight_map = write_shards(tmp_path, random_tensors(SPEC))
    moved = next(name for name, shard in weight_map.items() if shard == "model-0.safetensors")
    write_index(tmp_path, weight_map | {moved: "model-1.safetensors"})
    with pytest.raises(WeightsError, match="which lacks it"):
        SafetensorsTensors(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/passwd", "a/b", "..\\x", "..", ".", "", "a\0b", 3, None]
)
def test_an_index_may_only_name_files_in_its_folder(tmp_path, shard):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "secret.safetensors")
    write_index(folder, {"a": shard})
    with pytest.raises(WeightsError, match="not a file name in this folder"):
        SafetensorsTensors(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\xff"]
)
def test_an_index_that_is_no_index_is_refused(tmp_path, text):
    (tmp_path / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"index\.json"):
        SafetensorsTensors(tmp_path)


def fuse(tensors):
    """Phi-3's storage: q, k, v stacked into one matrix, gate and up into another."""
    prefix = "model.layers.0."
    fused = {n: t for n, t in tensors.items() if not any(p in n for p in ("q_proj", "k_proj", "v_proj", "gate", "up_"))}
    qkv = [tensors[f"{prefix}self_attn.{n}_proj.weight"] for n in "qkv"]
    gate_up = [tensors[f"{prefix}mlp.{n}_proj.weight"] for n in ("gate", "up")]
    fused[f"{prefix}self_attn.qkv_proj.weight"] = np.concatenate(qkv)
    fused[f"{prefix}mlp.gate_up_proj.weight"] = np.concatenate(gate_up)
    return fused


def test_fused_matrices_are_offered_as_their_parts(tmp_path):
    tensors = random_tensors(SPEC)
    save_file(fuse(tensors), tmp_path / SINGLE)
    source = SafetensorsTensors(tmp_path, SPEC)
    assert source.names() == tensors.keys()
    for name, array in tensors.items():
        assert source.shape(name) == array.shape
        np.testing.assert_array_equal(source.read(name), array, err_msg=name)


def test_fused_matrices_keep_their_names_without_a_model(tmp_path):
    fused = fuse(random_tensors(SPEC))
    save_file(fused, tmp_path / SINGLE)
    assert SafetensorsTensors(tmp_path).names() == fused.keys()


@pytest.mark.parametrize("change", [{"heads": 8}, {"ffn": 96}])
def test_fused_matrices_of_another_model_are_refused(tmp_path, change):
    save_file(fuse(random_tensors(SPEC)), tmp_path / SINGLE)
    with pytest.raises(WeightsError, match="fused tensor"):
        SafetensorsTensors(tmp_path, tiny_spec(layers=1, family="phi3", **change))


def read_all(path) -> None:
    source = SafetensorsTensors(path)
    for name in source.names():
        assert source.read(name).shape == source.shape(name)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, ml_dtypes.bfloat16)}, path)
    return path, path.read_bytes()


@settings(max_examples=200, derandomize=True)
@given(
    edits=st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=4),
    keep=st.one_of(st.just(1 << 30), st.integers(0, 255)),
)
@example(edits=[], keep=1 << 30)
def test_a_damaged_file_raises_nothing_but_weights_error(valid, edits, keep):
    path, data = valid
    path.write_bytes(mutate(data, edits, keep))
    only_weights_errors(read_all, path)


def test_experts_of_mixtral_have_the_names_of_qwen3_moe(tmp_path):
    spec = tiny_spec(family="mixtral", moe=MoeSpec(experts=3, top_k=2, ffn=40))
    tensors = random_tensors(spec)
    theirs = {".mlp.": ".block_sparse_moe.", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}

    def stored(name: str) -> str:
        return functools.reduce(lambda text, ours: text.replace(ours, theirs[ours]), theirs, name)

    save_file({stored(name): array for name, array in tensors.items()}, tmp_path / SINGLE)
    source = SafetensorsTensors(tmp_path, spec)
    assert source.names() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(source.read(name), array, err_msg=name)
