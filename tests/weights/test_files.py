"""Reading by offset and fingerprints: exact, and a WeightsError for what the operating system refuses."""

import hashlib

import pytest

from nanoserve.specs.errors import WeightsError
from nanoserve.weights import files


def test_one_file_has_the_fingerprint_that_sha256sum_prints(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"weights")
    assert files.fingerprint([path]) == hashlib.sha256(b"weights").hexdigest()


def test_several_files_are_told_apart_by_name_and_content_not_by_folder_or_order(tmp_path):
    def prints(folder, *contents: tuple[str, bytes]) -> str:
        paths = []
        for name, content in contents:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            paths.append(path)
        return files.fingerprint(paths)

    first = prints("one", ("a", b"1"), ("b", b"2"))
    assert prints("two", ("b", b"2"), ("a", b"1")) == first
    assert prints("three", ("a", b"2"), ("b", b"1")) != first
    assert prints("four", ("a", b"1"), ("c", b"2")) != first
    assert prints("five", ("x/a", b"1"), ("y/a", b"2")) != prints("six", ("x/a", b"1"), ("y/a", b"3"))


def test_a_large_file_is_sampled_at_both_ends_and_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(files, "_SAMPLE_BYTES", 16)
    content = bytes(1 << 21)

    def prints(data: bytes) -> str:
        path = tmp_path / "large"
        path.write_bytes(data)
        return files.fingerprint([path])

    variants = [content, b"\1" + content[1:], content[:-1] + b"\1", content + b"\0"]
    found = [prints(data) for data in variants]
    assert len(set(found)) == len(variants)
    assert all(f.startswith("sampled-") for f in found)


def test_read_at_returns_the_bytes_and_refuses_to_return_fewer(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    assert files.read_at(path, 3, 4) == b"3456"
    with pytest.raises(WeightsError, match="ends before byte 11"):
        files.read_at(path, 7, 4)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"absent: cannot be read \(No such file"):
        files.fingerprint([tmp_path / "absent"])
