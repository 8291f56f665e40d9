"""Sizes that remotes said, kept for later sessions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from heddle.objects import told
from heddle.objects.told import ToldSizes


def raw_id(number: int) -> bytes:
    return hashlib.sha1(b"%d" % number).digest()


def absent(_raw_id: bytes) -> bool:
    return False


def test_what_one_was_told_the_others_know(tmp_path: Path) -> None:
    """What is added is known to those who look later, and to those who have looked before."""
    first, second = (ToldSizes(tmp_path / "promised/sizes", 20) for _ in range(2))

    assert second.get(raw_id(1)) is None

    first.add({raw_id(1): 10, raw_id(2): 2**63 - 1}, absent)
    second.add({raw_id(3): 0}, absent)

    for each in (first, second, ToldSizes(tmp_path / "promised/sizes", 20)):
        assert [each.get(raw_id(number)) for number in (1, 2, 3, 4)] == [10, 2**63 - 1, 0, None]
        assert each.unknown([raw_id(4), raw_id(2)]) == [raw_id(4)]


def test_damage_is_no_size(tmp_path: Path) -> None:
    """Of a record with a flipped bit nothing is known; a half one is written over, and those behind it are read."""
    path = tmp_path / "sizes"
    ToldSizes(path, 20).add({raw_id(1): 10, raw_id(2): 20}, absent)
    content = bytearray(path.read_bytes())
    content[25] ^= 1
    path.write_bytes(bytes(content) + b"half")
    ToldSizes(path, 20).add({raw_id(3): 30}, absent)
    read = ToldSizes(path, 20)

    assert [read.get(raw_id(number)) for number in (1, 2, 3)] == [None, 20, 30]


def test_there_is_an_end_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many the newer half stays, without what is here; others see that too and go on adding."""
    monkeypatch.setattr(told, "KEPT", 100)
    path = tmp_path / "sizes"
    other = ToldSizes(path, 20)
    other.add({raw_id(0): 0}, absent)
    sizes = ToldSizes(path, 20)
    for number in range(1, 101):
        sizes.add({raw_id(number): number}, lambda each: each == raw_id(99))

    assert path.stat().st_size == 50 * 32
    assert sizes.get(raw_id(99)) is None

    other.add({raw_id(200): 200}, absent)

    for each in (sizes, ToldSizes(path, 20)):
        found = [number for number in range(1, 201) if each.get(raw_id(number)) == number]
        assert found == [*range(50, 99), 100, 200]


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    """What can't be written is known here all the same, and not without end."""
    (tmp_path / "file").write_text("")
    sizes = ToldSizes(tmp_path / "file" / "sizes", 20)
    sizes.add({raw_id(1): 10}, absent)

    assert sizes.get(raw_id(1)) == 10
