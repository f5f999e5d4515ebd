"""The one exception that a user of `models` has to know."""


class ModelError(Exception):
    """A user error in one line: what is wrong, where, and what to do about it."""
