"""The two errors a person meets; anything else that is raised is our own bug."""

from pathlib import Path


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do. Exit code 2."""


class VerificationError(Exception):
    """A rewrite or a stage that does not compute what it must. Exit code 1.

    `reproducer` is the folder that replays the failure, once one has been written.
    """

    def __init__(self, message: str, reproducer: Path | None = None) -> None:
        super().__init__(message)
        self.reproducer = reproducer
