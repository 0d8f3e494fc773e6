"""The book of token ids: what it packs away comes back, beside what is still open."""

from nanoserve.engine.spool import MemorySpool
from nanoserve.executors.tokens import TokenBook
from nanoserve.report.file_spool import FileSpool


def test_outputs_of_requests_that_left_and_of_those_in_flight_are_read_alike():
    for spool in (MemorySpool, FileSpool):
        book = TokenBook(lambda index: [index] * 3, stop_ids=(7,), spool=spool)
        for index in range(4):
            assert book.slice(index, 0, 2) == [index] * 2
        assert book.append(0, [5, 6], [-0.5, -0.25]) is None
        assert book.append(1, [5, 7, 9], [-1.0, -2.0, -3.0]) == 2  # what follows a stop token is dropped
        assert book.append(2, [1], [-0.1]) is None
        for left in (2, 0):
            book.close(left)
        book.close(9)  # never opened
        assert book.outputs == {0: [5, 6], 1: [5, 7], 2: [1], 3: []}
        assert book.logprobs == {0: [-0.5, -0.25], 1: [-1.0, -2.0], 2: [-0.1], 3: []}
        assert book.slice(1, 2, 3) == [1, 5, 7]
