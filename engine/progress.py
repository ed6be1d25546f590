"""What a person who waits for a start is told."""

import sys


def say(line: str) -> None:
    """Print one line to the terminal, now."""
    print(f"trimtab: {line}", file=sys.stderr, flush=True)
