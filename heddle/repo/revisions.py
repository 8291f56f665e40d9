"""State specs: from what a user types to one state.

Owns the grammar (``HEAD``, ``@``, names, ids and change ids or their beginnings, ``~N``) and what happens when
several states answer. The common specs cost a database row or an index lookup, never a walk of the history.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from heddle.errors import AmbiguousSpec, DataError, StateNotFound, UsageError
from heddle.repo.log import newest_first

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.repo.repository import Repository

MIN_PREFIX = 4
"""Fewest characters of an id or a change id that stand for it."""

_SPEC = re.compile(r"([^~]+)((?:~[0-9]*)*)", re.DOTALL)
_HEX = re.compile(r"[0-9a-fA-F]+")
_CHANGE = re.compile(r"[k-z]+")
_LISTED = 10


def resolve(repo: Repository, spec: str) -> ObjectID:
    """The state that a spec means.

    A thread's or marker's name wins over an id that begins alike. A change id means the latest state that
    carries it: of several, the newest that a thread reaches.

    Raises:
        StateNotFound: nothing answers to it.
        AmbiguousSpec: several states do; the message lists them.
        DataError: it is a thread that has no state yet.
        UsageError: it is no spec at all.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UsageError(f"{spec!r} can't be a state", hint="a thread, a marker, an id, HEAD~1")
    state = _named(repo, match[1]) or _by_id(repo, match[1]) or _in_git(repo, match[1])
    if state is None:
        raise _not_found(repo, match[1])
    steps = [int(digits) if digits else 1 for digits in match[2].split("~")[1:]]
    return _ancestor(repo, spec, state, sum(steps))


def _named(repo: Repository, name: str) -> ObjectID | None:
    if name in ("HEAD", "@"):
        return _thread_state(repo, repo.current_thread)
    marker = repo.database.marker(name)
    thread = repo.database.thread(name)
    if marker is None:
        return _thread_state(repo, name) if thread else None
    if thread is not None and thread.state != marker.state:
        states = {f"thread {name}": thread.state, f"marker {name}": marker.state}
        raise _ambiguous(name, [f"{what} {_short(state)}" for what, state in states.items()])
    return marker.state


def _thread_state(repo: Repository, name: str) -> ObjectID:
    state = repo.threads.get(name).state
    if state is None:
        is_bare = repo.git is not None and repo.git.bare
        hint = "heddle mount NEW-NAME --create" if is_bare else "heddle capture"
        raise DataError(f"thread '{name}' has no state yet", hint=hint)
    return state


def _by_id(repo: Repository, name: str) -> ObjectID | None:
    if len(name) < MIN_PREFIX:
        return None
    if _HEX.fullmatch(name):
        return _by_state_id(repo, name.lower())
    return _by_change_id(repo, name) if _CHANGE.fullmatch(name) else None


def _by_state_id(repo: Repository, prefix: str) -> ObjectID | None:
    length = 64 if repo.object_format == "sha256" else 40
    if len(prefix) > length:
        return None
    wanted = cast("ObjectID", prefix.encode())
    if len(prefix) == length:
        return wanted if repo.is_state(wanted) else None
    found = sorted(filter(repo.is_state, set(repo.store.iter_prefix(wanted))))
    if len(found) > 1:
        raise _ambiguous(prefix, [_described(repo, state) for state in found])
    return found[0] if found else None


def _by_change_id(repo: Repository, prefix: str) -> ObjectID | None:
    published = repo.database.changes(prefix)
    if not published:
        published = _changes_in_history(repo, prefix)
    change_ids = {change_id for change_id, _ in published}
    if len(change_ids) > 1:
        latest = dict(reversed(published))
        raise _ambiguous(prefix, [f"{c} {_described(repo, s)}" for c, s in latest.items()])
    if len(published) > 1:
        return _newest_reached(repo, [state for _, state in published])
    return published[0][1] if published else None


def _changes_in_history(repo: Repository, prefix: str) -> list[tuple[str, ObjectID]]:
    """Change ids of states that came from elsewhere (git): the one case that walks, newest first."""
    walk = newest_first(repo, _tips(repo))
    return [(s.change_id, s.id) for s in walk if s.change_id.startswith(prefix)]


def _newest_reached(repo: Repository, candidates: list[ObjectID]) -> ObjectID:
    """The newest candidate that a thread reaches; without any, the latest published, which comes first."""
    wanted = set(candidates)
    oldest_s = min(repo.state(state).committed_s for state in candidates)
    for state in newest_first(repo, _tips(repo), since_s=oldest_s):
        if state.id in wanted:
            return state.id
    return candidates[0]


def _tips(repo: Repository) -> list[ObjectID]:
    return [thread.state for thread in repo.threads if thread.state is not None]


def _in_git(repo: Repository, name: str) -> ObjectID | None:
    """What git calls by this name, in a repository on a git checkout."""
    if repo.git is None:
        return _in_refs(repo, name)
    from heddle.repo import gitlink

    found = gitlink.resolve(repo.git, name)
    if len(set(found.values())) > 1:
        raise _ambiguous(name, [f"{ref} {_short(state)}" for ref, state in found.items()])
    return next(iter(found.values()), None)


def _in_refs(repo: Repository, name: str) -> ObjectID | None:
    """A remote branch that was fetched into a repository that stands alone."""
    found = repo.database.refs().get(b"refs/remotes/" + name.encode(errors="surrogateescape"))
    target = cast("ObjectID | None", found)
    return target if target and repo.is_state(target) else None


def _ancestor(repo: Repository, spec: str, state: ObjectID, steps: int) -> ObjectID:
    for step in range(steps):
        parents = repo.state(state).parents
        if not parents:
            raise StateNotFound(
                f"{spec}: there are only {step} states before it", hint="heddle log"
            )
        state = parents[0]
    return state


def _not_found(repo: Repository, name: str) -> StateNotFound:
    if len(name) < MIN_PREFIX and (_HEX.fullmatch(name) or _CHANGE.fullmatch(name)):
        hint = f"the beginning of an id needs {MIN_PREFIX} characters"
        return StateNotFound(f"no state answers to {name!r}", hint=hint)
    from difflib import get_close_matches

    names = [thread.name for thread in repo.threads] + [marker.name for marker in repo.markers]
    near = get_close_matches(name, names, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "heddle log and heddle thread list"
    return StateNotFound(f"no state answers to {name!r}", hint=hint)


def _ambiguous(spec: str, candidates: Iterable[str]) -> AmbiguousSpec:
    listed = list(candidates)
    more = f", and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return AmbiguousSpec(
        f"{spec!r} could be any of: {'; '.join(listed[:_LISTED])}{more}",
        hint="give more characters, or the full id",
    )


def _described(repo: Repository, state: ObjectID) -> str:
    subject = repo.state(state).message.partition("\n")[0]
    return f"{_short(state)} {subject}".rstrip()


def _short(state: ObjectID | None) -> str:
    return "no state" if state is None else state[:12].decode()
