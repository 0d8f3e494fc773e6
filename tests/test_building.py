"""What an experiment's parts are made of."""

import dataclasses

from nanoserve.building import open_weights_of
from nanoserve.experiment import Cluster, Experiment, resolve
from nanoserve.weights.random import DrawnOnDevices, RandomTensors


def test_random_weights_are_drawn_by_accelerators_and_read_on_a_cpu():
    """A CPU's are recorded in golden outputs, and the same on every machine."""
    there = Experiment(name="drawn", model="llama-3.1-70b", seed=5, cluster=Cluster(chip="h100_sxm"))
    drawn = open_weights_of(there, resolve(there))
    assert drawn == DrawnOnDevices(resolve(there).model, 5)
    here = dataclasses.replace(there, model="tiny-llama", cluster=Cluster(chip="cpu_2core"))
    assert isinstance(open_weights_of(here, resolve(here)), RandomTensors)
