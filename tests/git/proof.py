"""Whether heddle shows any git repository as git itself does: every object, whole trees, every ref and back.

Owns the comparisons; ``script/proof`` runs them on repositories that are given to it, ``test_proof.py`` on small ones
that it makes. Stock git is always the other side. Nothing is written to the repositories themselves.
"""

from __future__ import annotations

import argparse
import os
import random
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from heddle import api
from heddle.git import export, importing
from heddle.objects.gitformat import TYPE_NAMES
from heddle.objects.state import decode

AS_STORED = b"* -text !eol -ident -filter -working-tree-encoding\n"
"""Attributes for a checkout that holds what the blobs hold."""
COMMITS = 10
_PIECE = 1 << 20


@dataclass
class Proof:
    """What was compared in one repository, and what was not the same.

    Attributes:
        objects: how many objects of each type were the same.
        trees: files and directories of the mounts that were the same as git's worktrees.
        commits: the commits that were mounted.
        refs: refs that came back with the same ids.
        fsck: what ``git fsck --strict`` says of the export and did not say of the source.
        wrong: every difference, in a line each.
        seconds: by step.
    """

    objects: dict[str, int] = field(default_factory=dict)
    trees: int = 0
    commits: list[str] = field(default_factory=list)
    refs: int = 0
    fsck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def git(where: Path, *args: str | Path) -> bytes:
    """What a git command prints."""
    done = subprocess.run(
        ["git", "-C", os.fspath(where), *map(os.fspath, args)], capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"git {args}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def prove(
    source: Path, work: Path, *, commits: int = COMMITS, seed: int = 1, there_and_back: bool = True
) -> Proof:
    """Compare everything about one repository.

    Args:
        source: a git repository of any kind: a checkout, a bare one, a ``.git``.
        work: an empty directory.
        commits: how many, chosen at random, are mounted.
        seed: of the choice.
        there_and_back: import and export too, which needs everything that the refs need.
    """
    proof = Proof()
    checkout = work / "checkout"
    git(work, "clone", "-q", "--shared", "--no-checkout", source.resolve(), checkout)
    (checkout / ".git" / "info" / "attributes").write_bytes(AS_STORED)
    with _timed(proof, "init"):
        repo = api.init(checkout)
    try:
        with _timed(proof, "objects"):
            prove_objects(repo, proof)
        with _timed(proof, "mounts"):
            prove_trees(repo, work, proof, commits, random.Random(seed))
    finally:
        repo.close()
    if there_and_back:
        with _timed(proof, "import and export"):
            prove_round_trip(source, work, proof)
    return proof


@contextmanager
def _timed(proof: Proof, step: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    proof.seconds[step] = time.monotonic() - start


# objects


def prove_objects(repo: api.Repository, proof: Proof) -> None:
    """Every object that git has is the same here, and there is none that git has not."""
    seen = set()
    for object_id, name, size in _read_all(repo, proof):
        seen.add(object_id)
        proof.objects[name] = proof.objects.get(name, 0) + 1
        if (
            repo.store.size(object_id) != size
            or TYPE_NAMES[repo.store.kind(object_id)] != name.encode()
        ):
            proof.wrong.append(f"type or size of {object_id.decode()}")
    if seen != set(repo.store):
        proof.wrong.append(f"{len(seen ^ set(repo.store))} objects are on one side only")


def _read_all(repo: api.Repository, proof: Proof) -> Iterator[tuple[bytes, str, int]]:
    """The id, type and size of every object of git; its content is compared on the way."""
    command = ["git", "cat-file", "--batch-all-objects", "--batch", "--unordered"]
    with subprocess.Popen(
        command, cwd=repo.path, stdout=subprocess.PIPE, bufsize=_PIECE
    ) as process:
        out = process.stdout
        assert out is not None
        while header := out.readline():
            object_id, name, length = header.split()
            size = int(length)
            same = True
            for piece in repo.store.iter_blob(object_id, _PIECE):  # of any type
                same &= out.read(len(piece)) == piece
                size -= len(piece)
            rest = out.read(max(0, size) + 1)
            if not same or rest != b"\n":
                proof.wrong.append(f"content of {object_id.decode()}")
            if name == b"commit":
                _check_state(repo, object_id, proof)
            elif name == b"tree":
                repo.store.tree_entries(object_id)
            yield object_id, name.decode(), int(length)
    if process.returncode:
        proof.wrong.append(f"git cat-file ended with {process.returncode}")


def _check_state(repo: api.Repository, object_id: bytes, proof: Proof) -> None:
    """A commit is understood: its tree and its parents are those of its header."""
    raw = repo.store.get_raw(object_id)[1]
    state = decode(object_id, raw)  # type: ignore[arg-type]
    header = raw.partition(b"\n\n")[0].split(b"\n")
    named = [line.split(b" ")[1] for line in header if line.startswith((b"tree ", b"parent "))]
    if named != [state.tree, *state.parents]:
        proof.wrong.append(f"tree or parents of {object_id.decode()}")


# whole trees


def prove_trees(
    repo: api.Repository, work: Path, proof: Proof, count: int, source: random.Random
) -> None:
    """A mount of a commit, and what ``materialize`` makes of it, is git's worktree of it."""
    listed = git(repo.path, "rev-list", "--all").decode().split()
    proof.commits = source.sample(listed, min(count, len(listed)))
    for commit in proof.commits:
        worktree, place, files = work / "worktree", work / "mount", work / "files"
        git(repo.path, "worktree", "add", "-q", "--detach", worktree, commit)
        right = look(os.fsencode(worktree))
        repo.mount(commit, place, read_only=True)
        try:
            shown = look(os.fsencode(place))
        finally:
            repo.unmount(place)
        repo.materialize(files, commit)
        for what, found in (("mount", shown), ("materialize", look(os.fsencode(files)))):
            differ = {
                path for path in right.keys() | found.keys() if right.get(path) != found.get(path)
            }
            proof.wrong += [f"{what} of {commit}: {path!r}" for path in sorted(differ)[:10]]
        proof.trees += len(right)
        for directory in (worktree, files):
            subprocess.run(["rm", "-rf", directory], check=True)
        git(repo.path, "worktree", "prune")


def look(root: bytes) -> dict[bytes, tuple[int, bytes]]:
    """Every path below a directory but ``.git``: its mode (of files, what git keeps) and its content."""
    found = {}
    for above, directories, files in os.walk(root):
        for name in directories + files:
            path = above + b"/" + name
            if path == root + b"/.git":
                continue
            mode = os.lstat(path).st_mode
            content = b""
            if stat.S_ISLNK(mode):
                content = os.readlink(path)
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    content = file.read()
            kept = stat.S_IFMT(mode) | (mode & 0o100 if stat.S_ISREG(mode) else 0)
            found[path[len(root) + 1 :]] = (kept, content)
    return found


# out and back


def prove_round_trip(source: Path, work: Path, proof: Proof) -> None:
    """What is imported into an empty repository and exported from it has every ref with the same id."""
    repo = api.init(work / "alone", object_format=_object_format(source))
    try:
        importing.import_git(repo, source)
        export.export(repo, to=work / "back.git")
    finally:
        repo.close()
    before, after = refs_of(source), refs_of(work / "back.git")
    for ref in sorted(before.keys() | after.keys()):
        if before.get(ref) != after.get(ref):
            proof.wrong.append(f"{ref}: {before.get(ref)} became {after.get(ref)}")
    proof.refs = len(before)
    proof.fsck = sorted(set(fsck(work / "back.git")) - set(fsck(source)))
    proof.wrong += [f"git fsck --strict: {line}" for line in proof.fsck]


def _object_format(source: Path) -> str:
    return git(source, "rev-parse", "--show-object-format").decode().strip()


def refs_of(where: Path) -> dict[str, str]:
    """Every ref with what it names, and where HEAD is."""
    listed = git(where, "for-each-ref", "--format=%(refname) %(objectname) %(symref)")
    lines = listed.decode(errors="surrogateescape").splitlines()
    return dict(line.rstrip().split(" ", 1) for line in lines)


def fsck(where: Path) -> list[str]:
    """What ``git fsck --strict`` finds wrong; that HEAD's branch is not born is only a notice."""
    done = subprocess.run(
        ["git", "-C", os.fspath(where), "fsck", "--strict", "--no-dangling", "--no-progress"],
        capture_output=True,
        check=False,
    )
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    return [line for line in lines if not line.startswith("notice:")]


# as a program


def main(argv: Sequence[str]) -> int:
    """Prove every repository given, print a row for each; returns 1 when anything differed."""
    parser = argparse.ArgumentParser(prog="script/proof", description=__doc__)
    parser.add_argument("repositories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--commits", type=int, default=COMMITS, help="how many to mount")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of commits")
    parser.add_argument(
        "--read-only", action="store_true", help="no import and export: for a partial clone"
    )
    parser.add_argument("--work", type=Path, help="where to put everything (default: TMPDIR)")
    options = parser.parse_args(argv)
    failed = False
    for source in options.repositories:
        with tempfile.TemporaryDirectory(prefix="heddle-proof.", dir=options.work) as name:
            work = Path(name)
            _isolate(work)
            proof = prove(
                source,
                work,
                commits=options.commits,
                seed=options.seed,
                there_and_back=not options.read_only,
            )
        print(row(source, proof), flush=True)
        for line in proof.wrong:
            print(f"  WRONG {line}", flush=True)
        failed |= bool(proof.wrong)
    return int(failed)


def _isolate(work: Path) -> None:
    """Nobody's own settings play a part."""
    (work / "run").mkdir(mode=0o700)
    (work / "home").mkdir()
    os.environ |= {
        "HOME": str(work / "home"),
        "XDG_RUNTIME_DIR": str(work / "run"),
        "HEDDLE_CONFIG": str(work / "home" / "heddle.toml"),
        "HEDDLE_PRINCIPAL_NAME": "Proof",
        "HEDDLE_PRINCIPAL_EMAIL": "proof@example.org",
        "GIT_CONFIG_NOSYSTEM": "1",
    }


def row(source: Path, proof: Proof) -> str:
    """What was the same, in a line."""
    objects = ", ".join(f"{count:,} {name}s" for name, count in sorted(proof.objects.items()))
    times = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in proof.seconds.items())
    return (
        f"{source}: {objects}; {len(proof.commits)} commits mounted, {proof.trees:,} paths;"
        f" {proof.refs:,} refs in and out again; {len(proof.wrong)} differences ({times})"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
