import sys

import pytest

from nanoserve.report.tensorboard import SCALARS, write_scalars
from nanoserve.specs.errors import ConfigError
from tests.report.synthetic import synthetic_run


def test_every_plan_becomes_a_point_of_every_scalar(tmp_path):
    Event = pytest.importorskip("tensorboardX.proto.event_pb2").Event

    steps, _ = synthetic_run(1, requests=5)
    write_scalars(tmp_path, steps)
    (path,) = tmp_path.iterdir()
    content, place, points = path.read_bytes(), 0, []
    while place < len(content):  # TFRecord: 8 bytes of length, 4 of checksum, the record, 4 of checksum
        length = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + length])
        points += [(value.tag, event.step) for value in event.summary.value]
        place += 16 + length
    assert len(points) == len(set(points)) == len(steps) * len(SCALARS)


def test_a_missing_package_is_said_plainly(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    steps, _ = synthetic_run(1, requests=2)
    with pytest.raises(ConfigError, match="tensorboardX, which is not installed"):
        write_scalars(tmp_path, steps)
