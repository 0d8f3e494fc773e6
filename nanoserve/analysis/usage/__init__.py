"""How a service uses its machines: chips by the hour and by load, KV memory, block sizes. `findings` has it all."""

from nanoserve.analysis.finding import Finding
from nanoserve.analysis.service import Service
from nanoserve.analysis.usage.blocks import StepSeconds, block_sizes
from nanoserve.analysis.usage.machine import machine_by_hour, machine_by_load
from nanoserve.analysis.usage.memory import kv_memory


def findings(service: Service, step_s: StepSeconds | None = None) -> list[Finding]:
    """Everything about usage, in the order in which a reader wants it.

    Args:
      service: its logs. step_s: what a decode step takes, for the study of block sizes; None leaves time out.
    """
    return [machine_by_hour(service), machine_by_load(service), kv_memory(service), block_sizes(service, step_s)]
