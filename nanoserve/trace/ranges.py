"""The one check behind every dataclass of this room that a config can fill."""

from typing import Any

from nanoserve.specs.errors import ConfigError


def require(owner: Any, field: str, good: bool, wanted: str) -> None:
    """Refuses a field's value, naming class, field and value.

    Raises:
      ConfigError: unless `good`.
    """
    if not good:
        raise ConfigError(f"{type(owner).__name__}.{field} = {getattr(owner, field)!r}: must be {wanted}")


def require_positive(owner: Any, *fields: str) -> None:
    """Refuses fields that are not finite numbers above 0.

    Raises:
      ConfigError: for the first such field.
    """
    for field in fields:
        require(owner, field, 0 < getattr(owner, field) < float("inf"), "positive and finite")
