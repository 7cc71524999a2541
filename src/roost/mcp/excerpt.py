"""Text of any length for readers whose attention is dear: its begin and end, or a window of it. Never held whole."""

LIMIT = 50_000  # characters of one answer


class Excerpt:
    """Begin and end of what is added, at most `limit` characters of it."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._half = limit // 2
        self._head, self._tail = "", ""
        self.total = 0

    def add(self, text: str) -> None:
        self.total += len(text)
        room = self._half - len(self._head)
        self._head += text[:room]
        self._tail += text[room:]
        if len(self._tail) > 4 * self._half:  # not each time: cutting copies
            self._tail = self._tail[-self._half :]

    @property
    def cut(self) -> bool:
        return self.total > 2 * self._half

    def text(self, how: str) -> str:
        """`how` says where the rest is to be had; `{offset}` in it is where the rest begins."""
        if not self.cut:
            return self._head + self._tail
        left_out = self.total - 2 * self._half
        note = f"[… {left_out} characters are left out here; {how.format(offset=self._half)} …]"
        return f"{self._head}\n{note}\n{self._tail[-self._half :]}"


class Window:
    """The `limit` characters from `offset` on of what is added."""

    def __init__(self, offset: int, limit: int = LIMIT) -> None:
        self._offset, self._limit = offset, limit
        self.content = ""
        self.total = 0

    def add(self, text: str) -> None:
        begin = max(0, self._offset - self.total)
        self.content += text[begin : begin + self._limit - len(self.content)]
        self.total += len(text)

    @property
    def next_offset(self) -> int | None:
        """Where to go on; None: this was the end."""
        end = self._offset + len(self.content)
        return end if end < self.total else None


def excerpt(text: str, limit: int, how: str) -> str:
    kept = Excerpt(limit)
    kept.add(text)
    return kept.text(how)
