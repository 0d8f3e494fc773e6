"""Which implementation of an operation runs: the one that is named, or for `auto` the chip's kernel where it serves.

An implementation that is named is never replaced by another: where it cannot serve, that is an error. `auto` says why
it picked what it picked, and belongs to `choose`: what computes takes the name that was chosen. Next:
`paged_attention.api` and `quant_matmul.api`, who ask.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

from nanoserve.specs.errors import ConfigError, nearest

AUTO = "auto"
PLAIN = "xla"  # which every chip runs
NATIVE: Mapping[str, str] = {"tpu": "pallas_tpu", "hopper": "pallas_gpu"}  # of `compat.kernel_target`

Implementations = Mapping[str, ModuleType]  # by name


class Choice(NamedTuple):
    """An implementation, and why it was picked."""

    name: str
    why: str


def check_known(operation: str, asked: str, implementations: Implementations) -> None:
    """Raises ConfigError for a name that is neither `auto` nor in `implementations`."""
    if asked != AUTO and asked not in implementations:
        hint = nearest(asked, [AUTO, *implementations])
        raise ConfigError(f"{operation} has no implementation '{asked}'.{hint}")


def module_of(operation: str, name: str, implementations: Implementations) -> ModuleType:
    """The implementation of a name that `choose` returned.

    Raises:
      ConfigError: there is none of that name.
    """
    if name == AUTO:
        raise ConfigError(f"'{AUTO}' is for `choose`, which returns the implementation that {operation} takes")
    check_known(operation, name, implementations)
    return implementations[name]


def choose(
    operation: str,
    asked: str,
    target: str,
    implementations: Implementations,
    why_not: Callable[[ModuleType], str | None],
) -> Choice:
    """The implementation that a name stands for.

    Args:
      operation: what is implemented, for messages.
      asked: a name in `implementations`, or `auto`. target: what will run it, as `compat.kernel_target` says.
      implementations: to choose from. why_not: the reason that one of them cannot serve what is planned, or None.

    Raises:
      ConfigError: for a name that does not exist, and for a name that cannot serve.
    """
    check_known(operation, asked, implementations)
    if asked != AUTO:
        if reason := why_not(implementations[asked]):
            raise ConfigError(f"{operation} '{asked}' cannot be used: {reason}. Use {PLAIN} or {AUTO}")
        return Choice(asked, "it was asked for")
    native = NATIVE.get(target)
    if native is None:
        return Choice(PLAIN, f"there is no kernel for {target or 'this device'}")
    reason = why_not(implementations[native])
    return Choice(PLAIN, reason) if reason else Choice(native, f"it is the kernel for {target}")
