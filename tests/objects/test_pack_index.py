"""The index alone: every object found at its place, nothing else found, damage seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heddle.errors import CorruptObject
from heddle.objects.index import Index, encode_index
from heddle.objects.layout import Entry

sizes = st.integers(0, 2**64 - 1)
unique_entries = st.integers(min_value=0, max_value=2**16).flatmap(
    lambda prefix: st.lists(
        st.builds(
            Entry,
            # Ids that share their beginning fall into one slot, the others spread over many.
            st.binary(min_size=20, max_size=20)
            | st.binary(min_size=17, max_size=17).map(
                lambda tail: prefix.to_bytes(3, "big") + tail
            ),
            sizes,
            sizes,
            sizes,
            st.integers(0, 255),
            st.integers(0, 255),
            st.just(0),
        ),
        unique_by=lambda entry: entry.id,
        max_size=60,
    )
)


def write(path: Path, entries: list[Entry]) -> Index:
    data = encode_index(entries, id_length=20, pack_size=7, pack_digest=bytes(range(32)))
    path.write_bytes(data)
    return Index(path, 20)


@given(entries=unique_entries, absent=st.binary(min_size=20, max_size=20))
def test_finding(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], absent: bytes
) -> None:
    """Every entry is found as it was written, an id that is not there is not, and the rows are in
    order of ids."""
    index = write(tmp_path_factory.mktemp("index") / "i.idx", entries)
    ids = [entry.id for entry in entries]

    assert entries == [index.find(raw_id) for raw_id in ids]
    assert (absent in ids) == (index.find(absent) is not None)
    assert sorted(entries) == list(index)
    assert sorted(ids) == list(index.ids())
    index.check()


def test_a_large_index_is_mapped(tmp_path: Path) -> None:
    """An index too long to be read at once is searched where it lies."""
    entries = [
        Entry((number << 145).to_bytes(20, "big"), number, number, number, 1, 3)
        for number in range(2**15)
    ]
    index = write(tmp_path / "i.idx", entries)

    assert not isinstance(index._data, bytes)
    assert entries == [index.find(entry.id) for entry in entries]
    assert None is index.find(b"\xff" * 20)


@pytest.mark.parametrize("shift", range(25))
def test_an_id_inside_another_row(tmp_path: Path, shift: int) -> None:
    """An id whose bytes happen to be another row's offset and sizes is not found there."""
    wanted = bytes(range(100, 120))
    fields = (b"\x01" * shift + wanted + b"\x01" * 24)[:24]
    numbers = [int.from_bytes(fields[at : at + 8], "little") for at in (0, 8, 16)]
    decoy = Entry(b"\x00" * 20, *numbers, 1, 3)
    real = Entry(wanted, 1, 2, 3, 1, 3)

    assert None is write(tmp_path / "1.idx", [decoy]).find(wanted)
    assert real == write(tmp_path / "2.idx", [decoy, real]).find(wanted)


@pytest.mark.parametrize("position", range(68))
def test_a_damaged_header(tmp_path: Path, position: int) -> None:
    """No byte of the header can be wrong unnoticed when the index is opened."""
    path = tmp_path / "i.idx"
    write(path, [])
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)

    with pytest.raises(CorruptObject, match=r"i\.idx"):
        Index(path, 20)


@pytest.mark.parametrize("length", [0, 1, 67, 68, 100])
def test_a_short_file(tmp_path: Path, length: int) -> None:
    """A file that ends before its header or its rows do is refused."""
    path = tmp_path / "i.idx"
    write(path, [Entry(bytes(20), 1, 2, 3, 1, 3)])
    path.write_bytes(path.read_bytes()[:length])

    with pytest.raises(CorruptObject, match=r"i\.idx"):
        Index(path, 20)
