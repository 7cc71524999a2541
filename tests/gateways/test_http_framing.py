"""Chunked bodies: however they are cut on their way, the same bytes come out and the end is found where it is."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.gateways.http.framing import BadChunks, Chunks, chunk, last_chunk

BODIES = st.lists(st.binary(min_size=1, max_size=300), max_size=8)
CUTS = st.lists(st.integers(0, 3000), max_size=30)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


@settings(max_examples=300, deadline=None)
@given(BODIES, CUTS, st.booleans(), st.binary(max_size=20))
def test_the_cuts_do_not_matter(body: list[bytes], cuts: list[int], raw: bool, behind: bytes) -> None:
    wire = b"".join(chunk(part) for part in body) + last_chunk([(b"X-Sum", b"1")])
    reader = Chunks(raw)
    out, rest = b"", b""
    for piece in pieces(wire + behind, cuts):
        if reader.done:
            rest += piece
        else:
            out += reader.feed(piece)
            rest += reader.rest
    assert reader.done
    assert rest == behind
    assert out == (wire if raw else b"".join(body))
    assert reader.trailers == [(b"X-Sum", b"1")]


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60), CUTS)
def test_noise_is_refused_or_waited_for_but_never_passed_on_as_content(noise: bytes, cuts: list[int]) -> None:
    """Whole or cut, the verdict is the same."""

    def verdict(parts: list[bytes]) -> tuple[bytes, bool] | None:
        reader, out = Chunks(raw=False), b""
        try:
            for part in parts:
                if reader.done:
                    break
                out += reader.feed(part)
        except BadChunks:
            return None
        return out, reader.done

    whole, cut = verdict([noise]), verdict(pieces(noise, cuts))
    assert whole == cut or whole is None or cut is None


@pytest.mark.parametrize("size", [b"0", b"00", b"000000000000000"])
def test_any_spelling_of_zero_is_the_end(size: bytes) -> None:
    reader = Chunks(raw=True)
    assert reader.feed(size + b"\r\n\r\nnext") == size + b"\r\n\r\n"
    assert (reader.done, reader.rest) == (True, b"next")
