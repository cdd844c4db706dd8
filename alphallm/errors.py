"""Errors that are the user's to mend: a sentence that says what was given, what is allowed and what to do."""

import math


class UserError(ValueError):
    """Something outside the program is wrong. A command ends with this message alone, without a stack trace."""

    status = 1  # of the process.


class ConfigError(UserError):
    """A config file, a field of a config, or an override of one is wrong."""


def check_range(config, low: float, high: float, *names: str):
    """Raises ValueError if a field of `config` is not from `low` to `high`; `high` may be math.inf."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            allowed = f"{low} or more" if high == math.inf else f"a number from {low} to {high}"
            raise ValueError(f"{name} is {value}: give {allowed}.")
