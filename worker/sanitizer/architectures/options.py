"""What a builder may be asked for: typed, allow-listed options, and the refusals of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.sanitizer.errors import SanitizerError

OptionValue = bool | int | str


class ArchitectureRefusedError(SanitizerError):
    """The registry will not build what was asked for."""

    code = "architecture_refused"


class UnknownArchitectureError(ArchitectureRefusedError):
    """No allow-listed architecture has this source and name."""

    code = "unknown_architecture"


class ArchitectureNotInstalledError(ArchitectureRefusedError):
    """The name is allowed, but the library that builds it cannot be imported on this worker."""

    code = "architecture_not_installed"


class InvalidArchitectureOptionError(ArchitectureRefusedError):
    """An option is unknown, of the wrong type, out of bounds, or asks for too large a network."""

    code = "invalid_architecture_option"


@dataclass(frozen=True, slots=True)
class IntOption:
    """A whole number in [minimum, maximum]."""

    default: int
    minimum: int
    maximum: int

    def check(self, name: str, value: object) -> int:
        """Return `value`, or raise InvalidArchitectureOptionError. A bool is not a number here."""
        if isinstance(value, bool) or not isinstance(value, int) or not self.minimum <= value <= self.maximum:
            raise InvalidArchitectureOptionError(
                f"architecture option '{name}' must be a whole number from {self.minimum} to {self.maximum}"
            )
        return value


@dataclass(frozen=True, slots=True)
class BoolOption:
    """True or false."""

    default: bool

    def check(self, name: str, value: object) -> bool:
        """Return `value`, or raise InvalidArchitectureOptionError."""
        if not isinstance(value, bool):
            raise InvalidArchitectureOptionError(f"architecture option '{name}' must be true or false")
        return value


@dataclass(frozen=True, slots=True)
class ChoiceOption:
    """One of a few words."""

    default: str
    choices: tuple[str, ...]

    def check(self, name: str, value: object) -> str:
        """Return `value`, or raise InvalidArchitectureOptionError."""
        if not isinstance(value, str) or value not in self.choices:
            raise InvalidArchitectureOptionError(
                f"architecture option '{name}' must be one of: {', '.join(self.choices)}"
            )
        return value


Option = IntOption | BoolOption | ChoiceOption


def resolve(architecture: str, allowed: Mapping[str, Option], given: Mapping[str, object]) -> dict[str, OptionValue]:
    """Return a checked value for every allowed option: the client's where given, else the default.

    Raises:
        InvalidArchitectureOptionError: for an option that is not allowed, or a value outside its type and bounds.
    """
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        known = ", ".join(sorted(allowed)) or "none"
        # The client's own word is echoed, so it is cut to a length that fits a sentence.
        raise InvalidArchitectureOptionError(
            f"architecture '{architecture}' has no option '{unknown[0][:60]}'; its options are: {known}"
        )
    return {
        name: option.check(name, given[name]) if name in given else option.default for name, option in allowed.items()
    }
