"""Dulwich's own functions on our store, and git reading what they make."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from dulwich.diff_tree import tree_changes
from dulwich.object_store import (
    BaseObjectStore,
    MissingObjectFinder,
    PackInputTooLarge,
    commit_tree_changes,
    iter_tree_contents,
    tree_lookup_path,
)
from dulwich.objects import Blob, Commit, ObjectID, Tag, Tree
from dulwich.pack import pack_objects_to_data, write_pack_data
from dulwich.walk import Walker

from heddle.attribution import Agent, Principal
from heddle.objects.gitformat import COMMIT
from heddle.objects.state import encode, new_change_id
from heddle.objects.store import ObjectStore

Git = Callable[..., bytes]
ANN = Principal("Ann", "ann@example.org")


class History:
    """Some states in a store; the later ones each change one file of many."""

    def __init__(self, store: ObjectStore, states: int = 5) -> None:
        self.store = store
        self.states: list[ObjectID] = []
        self.trees: list[ObjectID] = []
        source = random.Random(1)
        text = b"".join(b"%d\n" % source.randrange(10**9) for _ in range(500))
        for number in range(states):
            with store.writer() as writer:
                blob = writer.add_blob(text + b"version %d\n" % number)
                deep = writer.add_tree([(b"changing", 0o100644, blob)])
                same = writer.add_blob(b"same")
                link = writer.add_blob(b"a/changing")
                tree = writer.add_tree(
                    [
                        (b"a", 0o040000, deep),
                        (b"same", 0o100755, same),
                        (b"link", 0o120000, link),
                        (b"new %d" % number, 0o100644, same),
                    ]
                )
                state = writer.add(COMMIT, self.encode(tree, number))
                writer.commit()
            self.trees.append(tree)
            self.states.append(state)

    def encode(self, tree: bytes, number: int) -> bytes:
        return encode(
            tree=tree,
            parents=self.states[-1:],
            principal=ANN,
            agent=Agent("example", "model-1", "session 7", f"fix {number}"),
            change_id=new_change_id(),
            thread="agent/1",
            message=f"state {number}",
            time_s=1_700_000_000 + number,
            timezone_s=3600,
        )


@pytest.fixture(params=["sha1", "sha256"])
def history(request: pytest.FixtureRequest, tmp_path: Path) -> History:
    return History(ObjectStore.create(tmp_path / "objects", object_format=request.param))


@pytest.fixture
def history1(store: ObjectStore) -> History:
    return History(store)


def test_it_is_an_object_store(store: ObjectStore) -> None:
    """The interface is dulwich's own class, and what that adds is found on our store too."""
    assert isinstance(store.dulwich_store, BaseObjectStore)
    assert store.dulwich_store is store.dulwich_store
    assert [] == store.packs == store.dulwich_store.packs
    assert None is store.get_commit_graph()
    with pytest.raises(AttributeError):
        store.no_such_thing  # noqa: B018


def test_objects(history: History) -> None:
    """Commits, trees and blobs come as dulwich's objects, whose ids dulwich computes alike."""
    store = history.store
    commit = store[history.states[-1]]
    tree = store[history.trees[-1]]

    assert isinstance(commit, Commit)
    assert isinstance(tree, Tree)
    assert history.trees[-1] == commit.tree
    assert [(each.path, each.mode, each.sha) for each in tree.iteritems()] == store.tree_entries(
        history.trees[-1]
    )
    for object_id in store:
        assert object_id == store[object_id].id == store[object_id].get_id(store.object_format)
        assert object_id in store.dulwich_store
        assert store[object_id] == store.dulwich_store[object_id]


def test_walking_and_comparing(history: History) -> None:
    """Dulwich's walker, tree iteration, path lookup and tree diff run on the store."""
    store = history.store
    walked = [entry.commit.id for entry in Walker(store, [history.states[-1]])]
    by_path = [entry.commit.id for entry in Walker(store, [history.states[-1]], paths=[b"new 3"])]
    changes = list(tree_changes(store, history.trees[0], history.trees[1]))
    paths = [entry.path for entry in iter_tree_contents(store, history.trees[0])]

    assert history.states[::-1] == walked
    assert {history.states[3], history.states[4]} == set(by_path)
    assert [(change.type, (change.new or change.old).path) for change in changes] == [
        ("modify", b"a/changing"),
        ("delete", b"new 0"),
        ("add", b"new 1"),
    ]
    assert paths == [b"a/changing", b"link", b"new 0", b"same"]
    assert len(list(store.tree_changes(history.trees[0], history.trees[1]))) == 3
    assert paths == [entry.path for entry in store.iter_tree_contents(history.trees[0])]
    mode, _ = tree_lookup_path(store.__getitem__, history.trees[0], b"a/changing")
    assert mode == 0o100644


def test_changing_a_tree(history1: History) -> None:
    """Dulwich's function that makes a new tree from changes stores it in ours."""
    store = history1.store
    blob = Blob.from_string(b"new bytes")
    store.add_object(blob)
    tree = commit_tree_changes(
        store, history1.trees[0], [(b"a/b/c", 0o100644, blob.id), (b"same", None, None)]
    )
    paths = [entry.path for entry in iter_tree_contents(ObjectStore(store.path), tree)]

    assert paths == [b"a/b/c", b"a/changing", b"link", b"new 0"]


def test_what_is_missing(history: History) -> None:
    """The objects that one state has over another are its own and no others."""
    store = history.store
    finder = MissingObjectFinder(store, [history.states[1]], [history.states[2]])
    missing = {object_id for object_id, _ in finder}
    blob = store.tree_entries(store.tree_entries(history.trees[2])[0][2])[0][2]

    assert {
        history.states[2],
        history.trees[2],
        store.tree_entries(history.trees[2])[0][2],
        blob,
    } == missing
    count, objects = store.generate_pack_data([history.states[1]], [history.states[2]])
    assert (4, missing) == (count, {each.sha().hex().encode() for each in objects})


# Out to git


def pack_of_all(store: ObjectStore, want: ObjectID) -> bytes:
    count, objects = store.generate_pack_data([], [want])
    file = io.BytesIO()
    write_pack_data(file.write, objects, num_records=count, object_format=store.object_format)
    return file.getvalue()


def test_git_reads_what_we_give(history: History, git: Git) -> None:
    """All objects sent to a plain git repository make it whole: fsck --strict has nothing to say,
    and cat-file shows the attribution."""
    git("init", "-q", f"--object-format={history.store.format_name}")
    git("index-pack", "--strict", "--stdin", input=pack_of_all(history.store, history.states[-1]))
    git("update-ref", "refs/heads/main", history.states[-1].decode())

    assert git("fsck", "--strict", "--full", "--no-dangling") == b""
    assert git("rev-list", "--count", "main") == b"5\n"
    shown = git("cat-file", "-p", "main").decode().splitlines()
    assert "heddle-agent example/model-1" in shown
    assert "heddle-session session 7" in shown
    assert "heddle-task fix 4" in shown
    assert "heddle-thread agent/1" in shown
    for object_id in history.store:
        type_num, content = history.store.get_raw(object_id)
        name = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}[type_num]
        assert content == git("cat-file", name, object_id.decode())


# In from git


@pytest.fixture(params=["sha1", "sha256"])
def upstream(request: pytest.FixtureRequest, git: Git, tmp_path: Path) -> str:
    """A git repository with a history in which objects are stored as deltas, and a tag."""
    git("init", "-q", f"--object-format={request.param}", "-b", "main")
    file = tmp_path / "git" / "file"
    lines = [b"line %d\n" % (number * 7919) for number in range(3000)]
    for number in range(6):
        lines[number * 100] = b"changed\n"
        file.write_bytes(b"".join(lines))
        git("add", ".")
        git("commit", "-q", "-m", f"commit {number}")
    git("tag", "-a", "-m", "a tag", "v1")
    git("repack", "-q", "-a", "-d", "-f")
    return str(request.param)


def all_ids(git: Git) -> set[bytes]:
    return set(git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split())


def assert_same_objects(store: ObjectStore, git: Git) -> None:
    assert all_ids(git) == set(store)
    for object_id in store:
        name = git("cat-file", "-t", object_id.decode()).decode().strip()
        assert git("cat-file", name, object_id.decode()) == store.get_raw(object_id)[1]
    assert list(store.verify(full=True)) == []


def packed(git: Git, *revisions: str) -> bytes:
    return git("pack-objects", "--revs", "--stdout", "-q", input="\n".join(revisions).encode())


def test_a_git_pack_comes_in(git: Git, upstream: str, tmp_path: Path) -> None:
    """The objects of a pack that git wrote, deltas resolved, are in a pack of ours afterwards."""
    store = ObjectStore.create(tmp_path / "objects", object_format=upstream)
    file, commit, _ = store.add_pack()
    file.write(packed(git, "main", "v1"))
    commit()

    assert_same_objects(ObjectStore(store.path, object_format=upstream), git)


def test_a_thin_pack_comes_in(git: Git, upstream: str, tmp_path: Path) -> None:
    """A pack whose deltas are against objects that we have already is completed from them."""
    store = ObjectStore.create(tmp_path / "objects", object_format=upstream)
    for stream in (
        io.BytesIO(packed(git, "main~3")),
        io.BytesIO(
            git("pack-objects", "--revs", "--stdout", "--thin", "-q", input=b"main\nv1\n^main~3\n")
        ),
    ):
        store.add_thin_pack(stream.read, stream.read)

    assert_same_objects(store, git)


def test_a_pack_that_is_too_long(git: Git, upstream: str, tmp_path: Path) -> None:
    """A stream longer than the caller allows is refused and leaves nothing."""
    store = ObjectStore.create(tmp_path / "objects", object_format=upstream)
    stream = io.BytesIO(packed(git, "main"))
    with pytest.raises(PackInputTooLarge):
        store.add_thin_pack(stream.read, None, max_input_size=1000)

    assert list(store) == []


@pytest.mark.parametrize("position", [0.5, 1], ids=["in an object", "in the checksum"])
def test_a_damaged_pack_is_refused(
    git: Git, upstream: str, tmp_path: Path, position: float
) -> None:
    """A git pack with a flipped bit brings in nothing."""
    store = ObjectStore.create(tmp_path / "objects", object_format=upstream)
    data = bytearray(packed(git, "main"))
    data[int((len(data) - 1) * position)] ^= 1
    file, commit, _ = store.add_pack()
    file.write(data)
    with pytest.raises(Exception, match=r"."):
        commit()

    assert list(store) == []


def test_a_pack_that_is_given_up(store: ObjectStore) -> None:
    """An incoming pack that is aborted, or empty, leaves nothing."""
    file, _, abort = store.add_pack()
    file.write(b"PACK")
    abort()
    _, commit, _ = store.add_pack()
    commit()

    assert list(store) == []


def test_unpacked_objects_come_in(store: ObjectStore, git: Git) -> None:
    """Objects that dulwich hands over unpacked, deltas among them, are stored."""
    blobs = [Blob.from_string(b"line\n" * 500 + b"%d" % number) for number in range(10)]
    count, objects = pack_objects_to_data([(blob, None) for blob in blobs], deltify=True)
    unpacked = list(objects)
    assert any(each.delta_base is not None for each in unpacked)
    store.add_pack_data(count, iter(unpacked))

    assert {blob.id: (3, blob.data) for blob in blobs} == {
        each: store.get_raw(each) for each in store
    }


def test_a_tag_is_an_object_like_any_other(store: ObjectStore) -> None:
    """Every type of object that git has can be stored."""
    blob = Blob.from_string(b"x")
    tag = Tag()
    tag.name, tag.object, tag.message = b"v1", (Blob, blob.id), b"a tag"
    tag.tagger, tag.tag_time, tag.tag_timezone = b"Ann <a@b>", 1, 0
    store.add_objects([(blob, None), (tag, None)])

    assert tag == store[tag.id]
    assert (tag, blob) == store.dulwich_store.peel(tag.id)
