"""What the source says of durable steps: the named fault points, and the system calls that make something durable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "heddle"

# What a durable step is: names that appear, go or move, marks, and waiting for the disk.
_OS_CALLS = {
    *("rename", "renames", "replace", "link", "symlink", "unlink", "remove", "rmdir"),
    *("mkdir", "makedirs", "mknod", "mkfifo", "truncate", "ftruncate"),
    *("fsync", "fdatasync", "sync", "setxattr", "removexattr"),
}
_PATH_CALLS = {"rename", "replace", "unlink", "rmdir", "mkdir", "symlink_to", "hardlink_to"}
_FUNCTIONS = {"renameat2", "rmtree", "fsync_directory"}
_NOT_PATHS = {"os", "ast", "dataclasses"}

OF_SESSIONS = (
    *("session.", "mount.", "unmount.", "registry."),
    *("linked.", "gitindex.", "keptindex.", "gitconfig."),
)
"""Prefixes of points that only sessions and what starts and ends them reach: see ``test_sessions``."""
ON_REAL_MOUNTS = (*OF_SESSIONS, "supervisor.")
"""Those, and what only supervisors reach: see ``tests/kernel/test_restart.py``."""


class Site(NamedTuple):
    """A function that makes something durable.

    Attributes:
        function: ``module.Class.method``, the module from the package on: ``mount.upper.Upper.publish``.
        calls: the durable calls in it, in order.
        points: the fault points in it.
    """

    function: str
    calls: tuple[str, ...]
    points: tuple[str, ...]

    @property
    def name(self) -> str:
        """The part of the package and the function's own name: ``mount.publish``; what moving it does not change."""
        parts = self.function.split(".")
        return f"{parts[0]}.{parts[-1]}"


def sources() -> list[Path]:
    """Every module that may make something durable: all but what only talks to a terminal."""
    found = sorted(PACKAGE.rglob("*.py"))
    return [path for path in found if PACKAGE / "commands" not in path.parents]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def functions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every function of a module with its full name; what is nested belongs to the outer one."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{child.name}", child
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{name}.{child.name}")
            else:
                yield from walk(child, name)

    yield from walk(ast.parse(path.read_bytes()), module_of(path))


def reached(node: ast.AST) -> tuple[str, ...]:
    """The fault points named in a function."""
    return tuple(
        call.args[0].value
        for call in _calls(node)
        if ast.unparse(call.func).endswith("faults.reach")
        and isinstance(call.args[0], ast.Constant)
    )


def _calls(node: ast.AST) -> list[ast.Call]:
    found = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
    return sorted(found, key=lambda each: (each.lineno, each.col_offset))


def durable_calls(node: ast.AST) -> tuple[str, ...]:
    """The calls in a function that make something durable."""
    return tuple(name for call in _calls(node) if (name := _durable(call)))


def _durable(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id if function.id in _FUNCTIONS else ""
    if not isinstance(function, ast.Attribute):
        return ""
    owner, name = ast.unparse(function.value), function.attr
    if name in _FUNCTIONS:
        return name
    if owner == "os":
        return name if name in _OS_CALLS else ""
    if name == "execute" and any("COMMIT" in ast.unparse(each) for each in call.args):
        return "COMMIT"
    if name == "executescript":
        return "COMMIT"
    if name == "replace" and len(call.args) != 1:  # str.replace
        return ""
    return name if name in _PATH_CALLS and owner not in _NOT_PATHS else ""


def points() -> dict[str, list[str]]:
    """Every fault point of the package, with the functions that have it."""
    found: dict[str, list[str]] = {}
    for path in sources():
        for name, node in functions(path):
            for point in reached(node):
                found.setdefault(point, []).append(name)
    return found


def sites() -> list[Site]:
    """Every function that makes something durable."""
    return [
        Site(name, calls, reached(node))
        for path in sources()
        for name, node in functions(path)
        if (calls := durable_calls(node))
    ]
