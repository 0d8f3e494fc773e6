"""Orbax folders: what was saved comes back bit for bit, one tensor at a time; anything else is a WeightsError."""

import shutil

import ml_dtypes
import numpy as np
import pytest

from nanoserve.specs.errors import WeightsError
from nanoserve.weights import orbax
from tests.weights.factories import random_tensors, tiny_spec

pytest.importorskip("orbax.checkpoint")

SPEC = tiny_spec(layers=1)


@pytest.fixture(scope="module")
def tensors():
    drawn = random_tensors(SPEC)
    return {name: array.astype(ml_dtypes.bfloat16 if array.ndim > 1 else np.float32) for name, array in drawn.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("orbax") / "weights"
    orbax.save(path, tensors)
    return path


def assert_same(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def test_saved_tensors_come_back_bit_for_bit(folder, tensors):
    restored = orbax.restore(folder)
    assert restored.keys() == tensors.keys()
    for name, array in tensors.items():
        assert_same(restored[name], array)


def test_a_source_knows_shapes_and_reads_single_tensors(folder, tensors):
    source = orbax.OrbaxTensors(folder)
    assert source.names() == tensors.keys()
    for name, array in tensors.items():
        assert source.shape(name) == array.shape
    assert_same(source.read("model.norm.weight"), tensors["model.norm.weight"])


def test_an_unknown_tensor_names_the_nearest_one(folder):
    with pytest.raises(WeightsError, match=r"nearest is 'lm_head\.weight'"):
        orbax.OrbaxTensors(folder).read("lm_heads.weight")


def test_save_does_not_overwrite(folder, tensors):
    with pytest.raises(WeightsError, match="exists already"):
        orbax.save(folder, tensors)


def test_the_fingerprint_is_that_of_the_content(folder, tmp_path):
    copy = tmp_path / "moved"
    shutil.copytree(folder, copy)
    assert orbax.OrbaxTensors(copy).fingerprint() == orbax.OrbaxTensors(folder).fingerprint()
    orbax.save(tmp_path / "other", {"model.norm.weight": np.ones(3, np.float32)})
    assert orbax.OrbaxTensors(tmp_path / "other").fingerprint() != orbax.OrbaxTensors(folder).fingerprint()


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    assert not orbax.is_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="is not a folder that orbax wrote"):
        orbax.OrbaxTensors(tmp_path)


@pytest.mark.parametrize("metadata", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_damaged_metadata_is_refused(folder, tmp_path, metadata):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "_METADATA").write_bytes(metadata)
    with pytest.raises(WeightsError, match="copy"):
        orbax.OrbaxTensors(copy)


def test_lost_data_is_refused_when_read(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    source = orbax.OrbaxTensors(copy)
    for data in copy.rglob("d/*"):
        data.unlink()
    with pytest.raises(WeightsError, match=r"'model\.norm\.weight' cannot be restored"):
        source.read("model.norm.weight")


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "nested", {"params": {"w": np.ones(2)}, "step": np.ones(())})
    with pytest.raises(WeightsError, match="other than weights by name"):
        orbax.OrbaxTensors(tmp_path / "nested")
