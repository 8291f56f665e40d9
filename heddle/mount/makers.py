"""Which model made the commits that git made in a mount.

Owns who was at work when: told by the environment of the git that was started, and written down, since a session may
die between a commit and the look at it. A commit is an entry of HEAD's reflog, which git writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from heddle.attribution import Agent, agent_of
from heddle.mount.fsmonitor import command_of, words_of
from heddle.mount.process import ProcessIdentity
from heddle.repo.linked import log_length

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

_MAKING = frozenset((b"commit", b"rebase", b"merge", b"cherry-pick", b"revert", b"am", b"pull"))
_NAMES = """
add annotate apply archive bisect blame branch bugreport bundle cat-file check-attr check-ignore check-mailmap
check-ref-format checkout checkout-index cherry clean clone column commit-graph commit-tree config count-objects
credential daemon describe diagnose diff diff-files diff-index diff-tree difftool fast-export fetch fetch-pack
fmt-merge-msg for-each-ref for-each-repo format-patch fsck gc get-tar-commit-id grep hash-object help hook
index-pack init instaweb interpret-trailers log ls-files ls-remote ls-tree mailinfo mailsplit maintenance
merge-base merge-file merge-index merge-tree mergetool mktag mktree multi-pack-index mv name-rev notes
pack-objects pack-redundant pack-refs patch-id prune prune-packed push range-diff read-tree reflog remote repack
replace request-pull rerere reset restore rev-list rev-parse rm send-pack shortlog show show-branch show-index
show-ref sparse-checkout stage stash status stripspace submodule switch symbolic-ref tag unpack-file
unpack-objects update-index update-ref update-server-info upload-pack var verify-commit verify-pack verify-tag
version whatchanged worktree write-tree
"""
_LOOKING = frozenset(_NAMES.split())
"""Commands of git that make no commit on HEAD (git(1)); prompts and editors run some of them all the time."""
_MEMORY = "heddle-makers"
_FIELDS = ("provider", "model", "session", "task")


class Makers:
    """Which model made the commits of a mount.

    Whoever opened ``.git`` last after the entry before it, and not only to look, made an entry; when nobody did,
    whoever made the entry before it (a rebase makes many). Where they do not say for whom they work, the mount's
    defaults do.

    Args:
        private: git's directory of the mount.
        defaults: given when the thread was mounted, by key.
    """

    def __init__(self, private: Path, defaults: Mapping[str, str]) -> None:
        self._private = private
        self._log = private / "logs" / "HEAD"
        self._memory = private / _MEMORY
        self._default = agent_of({}, defaults)
        self._read_to = self._size()
        self._by_size: dict[int, Agent | None] = {}
        self._last: Agent | None = None
        self._working: ProcessIdentity | None = None
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            self._load(json.loads(self._memory.read_bytes()))

    def _load(self, said: Mapping[str, Mapping[str, list[str | None] | None]]) -> None:
        makers = {int(size): who and Agent(*who) for size, who in said["makers"].items()}
        last = said.get("last")
        self._last = Agent(*last) if last else None
        self._read_to, self._by_size = int(str(said["read_to"])), makers  # type: ignore[assignment]

    def _save(self) -> None:
        makers = {
            size: who and [getattr(who, name) for name in _FIELDS]
            for size, who in self._by_size.items()
        }
        temporary = self._memory.with_name(f"{_MEMORY}.tmp")
        with suppress(OSError):  # then a crash may cost an attribution
            last = self._last and [getattr(self._last, name) for name in _FIELDS]
            said = {"read_to": self._read_to, "makers": makers, "last": last}
            temporary.write_text(json.dumps(said))
            os.rename(temporary, self._memory)

    def _size(self) -> int:
        return log_length(self._private)

    def note(self, pid: int) -> None:
        """A process opened ``.git``; the last that may commit is the maker of what comes next."""
        words = _words(pid, "cmdline")
        if command_of(words) in _LOOKING:
            return
        pairs = (word.partition("=") for word in _words(pid, "environ"))
        agent = agent_of({name: value for name, _, value in pairs}, {})
        is_git = os.path.basename(words[0] if words else "").startswith("git")
        if is_git or agent is not None:
            self._working = ProcessIdentity.of(pid)
        elif self._working is not None and self._working.is_alive():
            return  # a search that reads every file, while somebody is at it
        self._begin_again_if_rewritten()
        self._by_size[self._size()] = agent or self._default
        self._save()

    def _begin_again_if_rewritten(self) -> None:
        """A reflog of which entries were expired or deleted is read from its beginning."""
        if self._size() < self._read_to:
            self._read_to, self._by_size = 0, {}

    def take(self) -> dict[ObjectID, Agent]:
        """The makers of the commits since the last call."""
        self._begin_again_if_rewritten()
        before = self._read_to, len(self._by_size)
        made: dict[ObjectID, Agent] = {}
        last = self._last
        for at, commit, is_new in self._entries():
            last = self._by_size.get(at, last)
            agent = last or self._default
            if is_new and agent is not None:
                made[commit] = agent
        self._last = last
        self._by_size = {at: agent for at, agent in self._by_size.items() if at >= self._read_to}
        if before != (self._read_to, len(self._by_size)) or not self._memory.exists():
            self._save()
        return made

    def _entries(self) -> Iterator[tuple[int, ObjectID, bool]]:
        """New entries: where they begin, the commit, and whether git made it then."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._read_to)
                for line in file:
                    at, self._read_to = self._read_to, self._read_to + len(line)
                    what = line.rstrip().partition(b"\t")[2]
                    words = line.split(b" ", 2)
                    if len(words) == 3:
                        yield at, cast("ObjectID", words[1]), _makes_a_commit(what)
        except OSError:
            return


def only_looks(pid: int) -> bool:
    """Whether a process is a git that makes no commit, as far as that can be told at once."""
    with suppress(OSError):
        return command_of(words_of(pid, "cmdline", at_once=True)) in _LOOKING
    return False


def _makes_a_commit(message: bytes) -> bool:
    """Whether git's reflog message is of something new, not of a way to what was there."""
    head, _, rest = message.partition(b": ")
    verb = head.split(b" ", 1)[0]
    if head.endswith((b"(start)", b"(finish)", b"(abort)")):
        return False
    return verb in _MAKING and (verb == b"commit" or rest.lower() != b"fast-forward")


def _words(pid: int, what: str) -> list[str]:
    """As ``words_of``, as far as we may see it."""
    try:
        return words_of(pid, what)
    except OSError:
        return []
