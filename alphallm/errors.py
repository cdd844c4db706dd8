"""Errors that are the user's to mend: a sentence that says what was given, what is allowed and what to do."""


class UserError(ValueError):
    """Something outside the program is wrong. A command ends with this message alone, without a stack trace."""


class ConfigError(UserError):
    """A config file, a field of a config, or an override of one is wrong."""
