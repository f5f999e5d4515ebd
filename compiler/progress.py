"""What long steps tell whoever waits for them."""

from collections.abc import Callable

# Where a long step stands: (what, done, total).
Progress = Callable[[str, int, int], None]


def nothing(_what: str, _done: int, _total: int) -> None:
    """A progress display that shows nothing."""
