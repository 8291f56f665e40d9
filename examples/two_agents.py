#!/usr/bin/env python3
"""Two agents at once on one repository, each in a directory of its own.

usage: python examples/two_agents.py REPOSITORY

Each agent gets a thread, works in its mount with ordinary file calls, and its changes are captured
under its own name. The two never see each other's files; what they did is compared at the end.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import heddle


def take_inventory(desk: Path) -> None:
    """The first agent's work: a list of what is there."""
    names = sorted(path.name for path in desk.iterdir())
    (desk / "INVENTORY").write_text("\n".join(names) + "\n")


def sign_everything(desk: Path) -> None:
    """The second agent's work: a line at the end of every file at the top."""
    for path in list(desk.iterdir()):
        if path.is_file():
            with path.open("a") as file:
                file.write("# looked at by agent-2\n")


AGENTS = {
    "agent-1": (take_inventory, "model-a"),
    "agent-2": (sign_everything, "model-b"),
}


def work(repository: Path, thread: str) -> str:
    """Let one agent work on its thread; returns what there is to say about it."""
    job, model = AGENTS[thread]
    repo = heddle.open(repository)
    with heddle.mounted(repo, thread, create=True) as desk:
        job(desk)
        flags = {"agent.provider": "example", "agent.model": model}
        captured = repo.capture(message=job.__doc__ or "", thread=thread, flags=flags)
    return f"{thread}: {captured.added} added, {captured.modified} modified"


def main(repository: Path) -> None:
    """Run both agents side by side, then say how their results differ."""
    with ThreadPoolExecutor() as pool:
        for line in pool.map(lambda thread: work(repository, thread), AGENTS):
            print(line)
    for change in heddle.open(repository).diff("agent-1", "agent-2"):
        print(change.kind, change.path.decode(errors="replace"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
