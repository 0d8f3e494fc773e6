"""What one call of a compiled GPU program launches, of a layer and outside the layers: the figures of a table.

What a program cannot tell is assumed as in `aot_report`: sampling is greedy unless the config's temperature is above 0,
and a loop of steps goes all the way. Next: `roofline.compiled_kernels`, `roofline.compiled_launches`.
"""

import dataclasses

from nanoserve.executors.aot import Compiled
from nanoserve.executors.aot_expected import Setting, attention_trips, trips_within
from nanoserve.roofline import compiled as hlo
from nanoserve.roofline.compiled_kernels import Kernel, extra_bytes, kernels
from nanoserve.roofline.compiled_launches import Launches, launches


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelReport:
    """What a step runs; a call of `decode_loop` is several steps.

    Attributes:
      program: the step's name. layers, steps: of the model, and of a call.
      kernels: in the program's order, with how often a call runs each.
      extra_bytes: of a step, moved beside what products and attention read.
      host: what the host does in a call.
    """

    program: str
    layers: int
    steps: int
    kernels: tuple[Kernel, ...]
    extra_bytes: float
    host: Launches

    @property
    def of_a_layer(self) -> float:
        """Kernels and copies that a layer launches."""
        return sum(each.times for each in self.kernels if each.in_layers) / (self.layers * self.steps)

    @property
    def outside(self) -> float:
        """Kernels and copies that a step launches outside the layers."""
        return sum(each.times for each in self.kernels if not each.in_layers) / self.steps


def launched(compiled: Compiled, setting: Setting) -> KernelReport:
    """Returns what a program that was compiled for a GPU launches."""
    steps = setting.work.loop_steps if compiled.name == "decode_loop" else 1
    program = hlo.parse(compiled.text)
    trips, within = attention_trips(setting, compiled.name), trips_within(setting, compiled.name)
    ran = hlo.executed(program, hlo.Assumed(trips, dearest_branch=setting.temperature > 0, within=within))
    found = kernels(program, ran, steps)
    return KernelReport(
        program=compiled.name,
        layers=setting.model.layers,
        steps=steps,
        kernels=found,
        extra_bytes=extra_bytes(found) / steps,
        host=launches(*compiled.thunks, program, steps),
    )
