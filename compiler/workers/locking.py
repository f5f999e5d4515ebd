"""A folder that one program works in at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compiler.errors import UserError


@contextmanager
def one_at_a_time(folder: Path, what: str) -> Iterator[int]:
    """Makes and locks a folder for one `what`; gives the lock's file descriptor.

    Workers that keep the descriptor open hold the lock, too, until they have ended. A folder in
    which nothing was left goes again. Raises UserError if another holds it.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another {what} is at work there; wait for it, or choose another -o"
            ) from error
        try:
            yield file.fileno()
        finally:
            if new and list(folder.iterdir()) == [lock]:
                lock.unlink()
                for path in new:
                    with suppress(OSError):  # what is not empty stays
                        path.rmdir()
