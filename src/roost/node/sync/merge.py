"""Several layers over a manifest become one tree, as overlayfs would show it, still relative to the image.

Everything is a stream in key order. Of the manifest below, pages that no layer touches are passed on unread. The result
is in one form only: nothing inside an opaque directory is a whiteout or opaque, for there is nothing left to hide.
"""

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from roost.node.sync.entry import DIRECTORY, WHITEOUT, Entry, below
from roost.node.sync.fetch import Chunks
from roost.node.sync.manifest import Page, Writer, entries


def over(upper: Iterable[Entry], lower: Iterable[Entry]) -> Iterator[Entry]:
    """Two trees as one; the upper wins as in an overlay. Not yet in the one form."""
    lowers = iter(lower)
    under = next(lowers, None)
    hidden: bytes | None = None  # what lies below this prefix is no longer visible
    for entry in upper:
        while under is not None and under.key < entry.key:
            if hidden is None or not under.key.startswith(hidden):
                yield under
            under = next(lowers, None)
        same = under if under is not None and under.key == entry.key else None
        if same is not None:
            under = next(lowers, None)
            if hidden is not None and same.key.startswith(hidden):
                same = None
        if entry.kind != DIRECTORY or entry.opaque:
            hidden = _hidden(hidden, entry.key)
        yield combined(entry, same)
    while under is not None:
        if hidden is None or not under.key.startswith(hidden):
            yield under
        under = next(lowers, None)


def _hidden(before: bytes | None, key: bytes) -> bytes:
    """The outermost hidden prefix stays, while it holds."""
    return before if before is not None and key.startswith(before) else below(key)


def combined(upper: Entry, lower: Entry | None) -> Entry:
    """One name in both. A directory over anything but a directory shows nothing of what is further below."""
    if upper.kind != DIRECTORY or lower is None or upper.opaque:
        return upper
    return replace(upper, opaque=True) if lower.kind != DIRECTORY or lower.opaque else upper


class Uncovered:
    """Puts entries into the one form: what hides something inside what is hidden already is dropped."""

    def __init__(self) -> None:
        self._covered: bytes | None = None

    def form(self, entry: Entry) -> Entry | None:
        if self._covered is not None and not entry.key.startswith(self._covered):
            self._covered = None
        if self._covered is not None:
            if entry.kind == WHITEOUT:
                return None
            return replace(entry, opaque=False) if entry.opaque else entry
        if entry.kind == DIRECTORY and entry.opaque:
            self._covered = below(entry.key)
        return entry


class _Below:
    """The manifest below, entry by entry where it must be, page by page where it can be."""

    def __init__(self, pages: Iterable[Page], chunks: Chunks) -> None:
        self._pages = iter(pages)
        self._chunks = chunks
        self._page = next(self._pages, None)
        self._entries: Iterator[Entry] = iter(())
        self.entry: Entry | None = None

    def open(self) -> None:
        """Have `entry` be the next one, if there is any."""
        while self.entry is None and self._page is not None:
            self._entries = entries([self._page], self._chunks)
            self._page = next(self._pages, None)
            self.entry = next(self._entries, None)

    def step(self) -> None:
        self.entry = next(self._entries, None)

    def whole_page(self) -> Page | None:
        """The next page, if nothing of an earlier one is left."""
        return self._page if self.entry is None else None

    def drop_page(self) -> None:
        self._page = next(self._pages, None)


def written(layers: Sequence[Iterable[Entry]], base: Iterable[Page], chunks: Chunks, writer: Writer) -> None:
    """Write the tree of the layers (lowest first) over `base`."""
    stack: Iterable[Entry] = layers[0] if layers else ()
    for layer in layers[1:]:
        stack = over(layer, stack)
    under = _Below(base, chunks)
    form = Uncovered()
    hidden: bytes | None = None
    for entry in stack:
        _pass_on(under, entry.key, hidden, writer, form)
        same = under.entry if under.entry is not None and under.entry.key == entry.key else None
        if same is not None:
            under.step()
            if hidden is not None and same.key.startswith(hidden):
                same = None
        if entry.kind != DIRECTORY or entry.opaque:
            hidden = _hidden(hidden, entry.key)
        _add(writer, form, combined(entry, same))
    _pass_on(under, None, hidden, writer, form)


def _add(writer: Writer, form: Uncovered, entry: Entry) -> None:
    formed = form.form(entry)
    if formed is not None:
        writer.add(formed)


def _pass_on(under: _Below, until: bytes | None, hidden: bytes | None, writer: Writer, form: Uncovered) -> None:
    """Everything of the manifest below before the key `until` (None: all the rest)."""
    while True:
        page = under.whole_page()
        if page is not None and (until is None or page.last < until):
            if hidden is not None and page.first.startswith(hidden) and page.last.startswith(hidden):
                under.drop_page()
                continue
            if writer.between_pages and (hidden is None or not _overlaps(page, hidden)):
                writer.take(page)
                under.drop_page()
                continue
        elif page is not None and until is not None and page.first > until:
            return
        under.open()
        entry = under.entry
        if entry is None or (until is not None and entry.key >= until):
            return
        if hidden is None or not entry.key.startswith(hidden):
            _add(writer, form, entry)
        under.step()


def _overlaps(page: Page, hidden: bytes) -> bool:
    """Whether a key that begins with `hidden` may be in the page."""
    return page.first.startswith(hidden) or page.first < hidden <= page.last
