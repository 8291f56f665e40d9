"""The shape of the house: imports point down, never in a circle; only the top looks outside.

Reads the source with ``ast``, so an import inside a function counts like any other. One under
TYPE_CHECKING counts as an arrow too; it makes no circle, because it never runs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "heddle"

# Top to bottom. A module may import from the lines below its own, and within its own folder.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"__main__"}),
    frozenset({"cli"}),
    frozenset({"commands"}),
    frozenset({"", "api"}),  # "" is the package's face, heddle/__init__.py
    frozenset({"mount", "git"}),
    frozenset({"repo"}),
    frozenset({"objects"}),
    frozenset({"attribution", "atomic", "errors", "faults"}),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

Imports = dict[str, set[str]]


def module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def without_types(tree: ast.Module) -> ast.Module:
    """The module without what stands under ``if TYPE_CHECKING:`` at its top."""
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
    ]
    return tree


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names a module may mean by its imports: for ``from a import b`` that is ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                above = here[: len(here) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def read_imports(package: Path, *, types: bool = True) -> Imports:
    """For every module of a package, the modules of the same package that it imports."""
    paths = {module_name(path, package): path for path in sorted(package.rglob("*.py"))}

    def resolve(name: str) -> str | None:
        while name and name not in paths:
            name = name.rpartition(".")[0]
        return name or None

    found: Imports = {}
    for module, path in paths.items():
        tree = ast.parse(path.read_bytes())
        names = imported_names(
            tree if types else without_types(tree), module, is_package=path.name == "__init__.py"
        )
        found[module] = {hit for name in names if (hit := resolve(name))} - {module}
    return found


def part(module: str) -> str:
    """The part of the house that a module lives in: "repo" for heddle.repo.database."""
    return module.split(".")[1] if "." in module else ""


def upward(imports: Imports) -> list[str]:
    """Arrows that point up, or sideways between two parts on one line other than leaves."""
    lowest = len(LAYERS) - 1

    def points_down(source: str, target: str) -> bool:
        ours, theirs = part(source), part(target)
        return (
            ours == theirs or LEVEL[ours] < LEVEL[theirs] or LEVEL[ours] == lowest == LEVEL[theirs]
        )

    # The face names what it hands out lazily, and that is the line it stands on.
    return [
        f"{source} -> {target}"
        for source, targets in sorted(imports.items())
        for target in sorted(targets)
        if not points_down(source, target) and (source, target) != ("heddle", "heddle.api")
    ]


def circle(imports: Imports) -> list[str]:
    """Modules that import each other in a ring, or an empty list."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(imports[module]):
            if ring := visit(target, [*path, module]):
                return ring
        done.add(module)
        return []

    return next((ring for module in sorted(imports) if (ring := visit(module, []))), [])


@pytest.fixture(scope="module")
def imports() -> Imports:
    return read_imports(PACKAGE)


def test_every_part_of_the_house_has_a_layer(imports: Imports) -> None:
    """A new module at the top of the package is put on a line of LAYERS before it is used."""
    assert {part(module) for module in imports} <= set(LEVEL)


def test_no_import_points_up(imports: Imports) -> None:
    """cli, commands, api, mount and git, repo, objects, leaves: imports follow this order only."""
    assert upward(imports) == []


def test_no_imports_in_a_circle() -> None:
    """No chain of imports comes back to where it began, not even through functions."""
    assert circle(read_imports(PACKAGE, types=False)) == []


def write_package(tmp_path: Path, **sources: str) -> Imports:
    package = tmp_path / "heddle"
    for name, source in sources.items():
        path = package.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for folder in [package, *(path for path in package.iterdir() if path.is_dir())]:
        (folder / "__init__.py").touch()
    return read_imports(package)


def test_an_upward_arrow_inside_a_function_is_seen(tmp_path: Path) -> None:
    """The check itself: an import hidden in a function of a lower layer is reported."""
    seen = write_package(
        tmp_path,
        repo__log="def f():\n    from heddle.mount import core\n",
        mount__core="",
    )

    assert upward(seen) == ["heddle.repo.log -> heddle.mount.core"]


def test_a_relative_upward_arrow_is_seen(tmp_path: Path) -> None:
    """The check itself: a relative import is followed to the module that it means."""
    seen = write_package(tmp_path, repo__log="from ..mount import core\n", mount__core="")

    assert upward(seen) == ["heddle.repo.log -> heddle.mount.core"]


def test_an_upward_type_is_seen(tmp_path: Path) -> None:
    """The check itself: naming a type of a higher layer is an arrow too."""
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from heddle.api import X\n"
    seen = write_package(tmp_path, repo__log=source, api="")

    assert upward(seen) == ["heddle.repo.log -> heddle.api"]


def test_mount_and_git_stay_apart(tmp_path: Path) -> None:
    """The check itself: two parts on one line must not know each other."""
    seen = write_package(tmp_path, mount__core="import heddle.git.bridge\n", git__bridge="")

    assert upward(seen) == ["heddle.mount.core -> heddle.git.bridge"]


def test_a_circle_within_one_layer_is_seen(tmp_path: Path) -> None:
    """The check itself: three modules of one folder in a ring are reported as the ring."""
    seen = write_package(
        tmp_path,
        repo__a="from heddle.repo import b\n",
        repo__b="def f():\n    from heddle.repo.c import x\n",
        repo__c="from heddle.repo.a import y\n",
    )

    assert circle(seen) == ["heddle.repo.a", "heddle.repo.b", "heddle.repo.c", "heddle.repo.a"]


# What reads the outside world below commands/, and why it may.
MAY_READ = {
    "heddle.api": {"os.environ"},  # what a Python caller means who passes no environment
    "heddle.faults": {"os.environ"},  # a crash test names its point there; see the module
    "heddle.mount.fsmonitor": {"os.environ"},  # git's own, when it is asked for its version
    "heddle.mount.supervisor": {
        "os.environ"
    },  # the program that a mount starts: its user's settings
}
OUTSIDE = {
    "os.environ",
    "os.environb",
    "os.getenv",
    "os.getcwd",
    "os.getcwdb",
    "Path.cwd",
    "pathlib.Path.cwd",
    "Path.home",
    "os.path.expanduser",
    "sys.argv",
    "sys.stdin",
    "sys.stdout",
    "print",
    "input",
}


def outside_reads(tree: ast.AST) -> set[str]:
    """The names from OUTSIDE that a module uses."""
    names = {
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)
    }
    return names & OUTSIDE


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "commands"
    ],
    ids=lambda path: module_name(path, PACKAGE),
)
def test_only_commands_read_the_outside_world(path: Path) -> None:
    """Environment, arguments, current directory and terminal reach the library as values."""
    module = module_name(path, PACKAGE)
    if module in ("heddle.cli", "heddle.__main__"):
        return
    assert outside_reads(ast.parse(path.read_bytes())) - MAY_READ.get(module, set()) == set()


def test_reading_the_environment_is_seen() -> None:
    """The check itself: os.environ in a module is found, wherever it stands."""
    source = "def f():\n    return os.environ['HOME']\n"

    assert {"os.environ"} == outside_reads(ast.parse(source))


HEAVY = (
    "trio",
    "pyfuse3",
    "rich",
    "asyncio",
    "dulwich.porcelain",
    "dulwich.repo",
    "dulwich.client",
)


@pytest.mark.parametrize("command", ["status", "mounts", "mount", "capture", "whoami"])
def test_a_common_command_imports_nothing_heavy(command: str) -> None:
    """What a command loads before it acts: no event loop, no FUSE, no transports of dulwich."""
    script = f"import heddle.cli, heddle.commands.{command}, sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert set() == set(done.stdout.split()) & set(HEAVY)


def test_importing_the_package_imports_nothing_of_it() -> None:
    """``import heddle`` costs nothing until something of it is used."""
    script = "import sys, heddle; print(*(n for n in sys.modules if n.startswith('heddle.')))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == ""
