"""A spool on disk: the bytes of one in memory, little of them held, and taken along by value."""

import pickle

import numpy as np

from nanoserve.engine.spool import MemorySpool
from nanoserve.report.file_spool import HELD_BYTES, FileSpool


def filled(spool, chunks):
    for chunk in chunks:
        spool += chunk
    return spool


def test_a_file_holds_what_memory_would_and_reading_it_does_not_end_it():
    random = np.random.default_rng(0)
    chunks = [random.bytes(int(size)) for size in random.integers(0, HELD_BYTES // 3, size=40)]
    disk, memory = filled(FileSpool(), chunks), filled(MemorySpool(), chunks)
    assert len(disk) == len(memory) > 3 * HELD_BYTES and len(disk._held) < HELD_BYTES
    assert disk.whole() == memory.whole()
    assert filled(disk, [b"more"]).whole() == filled(memory, [b"more"]).whole()


def test_a_copy_has_a_file_of_its_own():
    disk = filled(FileSpool(), [b"x" * HELD_BYTES, b"tail"])
    copied = pickle.loads(pickle.dumps(disk))
    disk += b"not in the copy"
    assert copied.whole() == b"x" * HELD_BYTES + b"tail" and len(copied) == HELD_BYTES + 4
