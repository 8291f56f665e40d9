"""A short way to put states into a repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heddle.attribution import Agent, Attribution, Principal
from heddle.objects import state as states
from heddle.repo.repository import Repository

COMMIT = 1
FILE = 0o100644
EMPTY_TREE = b"4b825dc642cb6eb9a060e54bf8d69288fbee4904"
ADA = Attribution(Principal("Ada", "ada@example.org"), None, {})


class History:
    """Writes states into a repository's store, one second apart unless a time is given."""

    def __init__(self, repo: Repository) -> None:
        self.repo = repo
        self.time_s = 1_700_000_000

    def commit(
        self,
        message: str = "",
        *,
        parents: Sequence[bytes] = (),
        files: Mapping[bytes, bytes] = {},
        agent: Agent | None = None,
        time_s: int | None = None,
        change_id: str | None = None,
    ) -> bytes:
        """Store a state; files are named by path, with ``/`` between directories."""
        self.time_s = self.time_s + 1 if time_s is None else time_s
        with self.repo.store.writer() as writer:
            raw = self.encoded(
                message,
                tree=self._tree(writer, files),
                parents=parents,
                agent=agent,
                time_s=self.time_s,
                change_id=change_id or states.new_change_id(),
            )
            id = writer.add(COMMIT, raw)
            writer.commit()
        return id

    def encoded(self, message: str, **fields) -> bytes:
        """A state's bytes."""
        defaults = {"tree": EMPTY_TREE, "parents": (), "agent": None, "thread": None}
        return states.encode(
            **(
                defaults
                | {"principal": ADA.principal, "timezone_s": 0, "message": message}
                | fields
            )
        )

    def _tree(self, writer, files):
        entries = [
            (name, FILE, writer.add_blob(content))
            for name, content in files.items()
            if b"/" not in name
        ]
        for directory in {name.split(b"/")[0] for name in files if b"/" in name}:
            below = {
                name[len(directory) + 1 :]: content
                for name, content in files.items()
                if name.startswith(directory + b"/")
            }
            entries.append((directory, 0o040000, self._tree(writer, below)))
        return writer.add_tree(entries)

    def capture(self, thread: str = "main", message: str = "", **options) -> bytes:
        """Store a state on top of a thread's and publish it."""
        old = self.repo.threads.get(thread).state
        new = self.commit(message, parents=[old] if old else [], **options)
        self.repo.publish(
            thread=thread,
            expected=old,
            new=new,
            kind="capture",
            message=message,
            attribution=ADA,
        )
        return new
