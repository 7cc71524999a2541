"""Progress bars on standard error, where that is a terminal; nothing where it is not."""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import click

CHUNK = 256 * 1024  # bytes
LABEL = 40  # characters of a step's text on the bar's line


def on_terminal() -> bool:
    return sys.stderr.isatty()


@contextmanager
def sent(content: BinaryIO, size: int, label: str) -> Generator[Iterator[bytes]]:
    """The content in pieces, with a bar of how much of `size` bytes has been taken."""
    with click.progressbar(length=max(size, 1), label=label, file=sys.stderr, hidden=not on_terminal()) as bar:

        def pieces() -> Iterator[bytes]:
            for piece in iter(lambda: content.read(CHUNK), b""):
                yield piece
                bar.update(len(piece))

        yield pieces()


@contextmanager
def steps(label: str) -> Generator[Callable[[str, int], None]]:
    """A bar that is told, for each step, its words and how many of 100 parts of all work are done."""
    with click.progressbar(
        length=100,
        label=f"{label:<{LABEL}.{LABEL}}",
        file=sys.stderr,
        show_eta=False,
        width=24,
        hidden=not on_terminal(),
    ) as bar:

        def told(words: str, done: int) -> None:
            bar.label = f"{words:<{LABEL}.{LABEL}}"
            bar.update(max(0, min(done, 100) - bar.pos))
            bar.render_progress()

        yield told
