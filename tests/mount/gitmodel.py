"""What a capture of a tree must come to, said again in the plainest way: git ids by hashing, ignore rules by the book.

Nothing here reads what the mount wrote. Trees are dictionaries: name to (mode, id, inside), ``inside`` being a
directory's own dictionary, else None.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from typing import TypeAlias

from heddle.repo.ignore import IgnoreRules
from mount.places import Path, Seen

Tree: TypeAlias = "dict[bytes, tuple[int, bytes, Tree | None]]"
Leaves: TypeAlias = "dict[bytes, tuple[int, bytes]]"

DIRECTORY = 0o040000


def object_id(kind: bytes, content: bytes) -> bytes:
    return hashlib.sha1(b"%s %d\0" % (kind, len(content)) + content).hexdigest().encode()


def tree_id(tree: Tree) -> bytes:
    """The id of a tree: its entries in git's order (a directory sorts as if its name ended in ``/``)."""

    def place(name: bytes) -> bytes:
        return name + b"/" if stat.S_ISDIR(tree[name][0]) else name

    rows = (
        b"%o %s\0" % (tree[n][0], n) + bytes.fromhex(tree[n][1].decode())
        for n in sorted(tree, key=place)
    )
    return object_id(b"tree", b"".join(rows))


def expected_tree(seen: Mapping[Path, Seen], base: Tree) -> Tree:
    """What a capture of everything must record of a tree, given the last state."""
    rules = IgnoreRules(lambda path: _rules_at(seen, path))
    result = _directory(seen, _children(seen), (), base, rules)
    return {} if result is None else result


def _rules_at(seen: Mapping[Path, Seen], path: bytes) -> bytes | None:
    found = seen.get(tuple(path.split(b"/")))
    return found.content if found is not None and stat.S_ISREG(found.mode) else None


def _children(seen: Mapping[Path, Seen]) -> dict[Path, list[bytes]]:
    children: dict[Path, list[bytes]] = {}
    for path in seen:
        if path:
            children.setdefault(path[:-1], []).append(path[-1])
    return children


def _directory(
    seen: Mapping[Path, Seen],
    children: Mapping[Path, list[bytes]],
    path: Path,
    base: Tree | None,
    rules: IgnoreRules,
) -> Tree | None:
    """None: nothing of it can be recorded, because all it holds is left out."""
    result: Tree = {}
    left_out = False
    for name in children.get(path, []):
        inner, was = (*path, name), (base or {}).get(name)
        mode = seen[inner].mode
        if was is None and rules.is_ignored(b"/".join(inner), stat.S_ISDIR(mode)):
            left_out = True
        elif stat.S_ISDIR(mode):
            below = _directory(seen, children, inner, None if was is None else was[2], rules)
            if below is None:
                left_out = True
            else:
                result[name] = DIRECTORY, tree_id(below), below
        elif stat.S_ISLNK(mode) or stat.S_ISREG(mode):
            git_mode = 0o120000 if stat.S_ISLNK(mode) else 0o100755 if mode & 0o100 else 0o100644
            result[name] = git_mode, object_id(b"blob", seen[inner].content), None
        else:
            left_out = True
    return None if not result and left_out and base != {} else result


def selected(base: Tree, now: Tree, path: Path) -> Tree:
    """The base with one path of it as it is now; what is beside the path stays, whatever became of its directories."""
    name, rest = path[0], path[1:]
    result = dict(base)
    if not rest:
        result.pop(name, None)
        if name in now:
            result[name] = now[name]
        return result
    before = base[name][2] if name in base else None
    after = now[name][2] if name in now else None
    below = selected(before or {}, after or {}, rest)
    if below or before is not None:
        result[name] = DIRECTORY, tree_id(below), below
    return result


def with_entry(tree: Tree, path: Path, entry: tuple[int, bytes, Tree | None] | None) -> Tree:
    """A tree with another entry at a path, directories made on the way; None takes the entry away."""
    name, rest = path[0], path[1:]
    result = dict(tree)
    if rest:
        inside = tree[name][2] if name in tree else None
        if inside is None and entry is None:
            return result
        below = with_entry(inside or {}, rest, entry)
        result[name] = DIRECTORY, tree_id(below), below
    elif entry is None:
        result.pop(name, None)
    else:
        result[name] = entry
    return result


def entry(tree: Tree, path: Path) -> tuple[int, bytes, Tree | None] | None:
    """What a tree has at a path."""
    above = inside(tree, path[:-1])
    return None if above is None else above.get(path[-1])


def inside(tree: Tree, path: Path) -> Tree | None:
    """The directory at a path, None when there is none."""
    found: Tree | None = tree
    for name in path:
        below = None if found is None else found.get(name)
        found = None if below is None else below[2]
    return found


def leaves(tree: Tree, prefix: bytes = b"") -> Leaves:
    """Everything that is not a directory with something in it, by path."""
    result: Leaves = {}
    for name, (mode, id, inside) in tree.items():
        if inside:
            result |= leaves(inside, prefix + name + b"/")
        else:
            result[prefix + name] = mode, id
    return result


def differences(old: Tree, new: Tree) -> dict[bytes, str]:
    """Path to kind of every change; an empty directory counts only where no directory was, or is."""
    before, after = leaves(old), leaves(new)
    result: dict[bytes, str] = {}
    for path in before.keys() | after.keys():
        was, now = before.get(path), after.get(path)
        if was == now or _is_directory_on_both_sides(path, was, now, old, new):
            continue
        if was is None or now is None:
            result[path] = "added" if was is None else "deleted"
        elif stat.S_IFMT(was[0]) == stat.S_IFMT(now[0]):
            result[path] = "modified"
        else:
            result[path] = "type-changed"
    return result


def _is_directory_on_both_sides(
    path: bytes,
    was: tuple[int, bytes] | None,
    now: tuple[int, bytes] | None,
    old: Tree,
    new: Tree,
) -> bool:
    """An empty directory that became a full one, or the other way round: what is inside tells."""
    if was is not None and now is not None:
        return False
    entry = was or now
    assert entry is not None
    side = new if now is None else old
    return stat.S_ISDIR(entry[0]) and inside(side, tuple(path.split(b"/"))) is not None
