"""Every input that ever told the fuzzer something is run again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ovs_hotswap.vhostuser import messages
from ovs_hotswap.vhostuser.messages import Request
from tests.fuzz.target import one_input

CORPUS = Path(__file__).parent.parent / "fuzz" / "corpus"


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    one_input(path.read_bytes())


def pieces(message: bytes, descriptors: int = 0) -> bytes:
    """A message as the fuzzer's input has it: descriptors come with its first piece."""
    cut, first = bytearray(), True
    for start, end in ((0, messages.HEADER.size), (messages.HEADER.size, len(message))):
        while start < end:
            size = min(31, end - start)
            cut += bytes([(descriptors if first else 0) << 5 | size]) + message[start : start + size]
            start, first = start + size, False
    return bytes(cut)


streams = st.builds(
    pieces,
    st.builds(
        lambda request, payload, flags: messages.build(request, payload, flags),
        st.sampled_from(Request), st.binary(max_size=80), st.sampled_from([1, 1, 1, 9, 5]),
    ),
    st.integers(0, 2),
)  # fmt: skip


@given(st.lists(streams, max_size=12).map(b"".join))
@example(pieces(messages.build_number(Request.SET_FEATURES, 1)) + pieces(messages.build(Request.SET_OWNER)))
def test_streams_of_messages(stream: bytes) -> None:
    one_input(stream)


@given(st.binary(max_size=200))
def test_streams_of_bytes(stream: bytes) -> None:
    one_input(stream)
