"""What a newcomer meets first does what it says: the README's tour and the programs in examples/.

Everything runs as a user would run it, in a shell or as a program, with nobody's own configuration.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
BEGIN = "\x1e"


@dataclass
class Home:
    """A user's empty home: where commands run, and with what environment."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *argv: str | Path, cwd: Path | None = None, **extra: str) -> str:
        done = self.attempt(*argv, cwd=cwd, **extra)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def attempt(
        self, *argv: str | Path, cwd: Path | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in argv],
            cwd=cwd or self.path,
            env=self.environment | extra,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def mounts(self) -> list[str]:
        """Mountpoints in this home, as the kernel lists them."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [point for point in points if point.startswith(f"{self.path}/")]


@pytest.fixture
def home() -> Iterator[Home]:
    # Not pytest's tmp_path: a control socket's path has to stay short.
    path = Path(tempfile.mkdtemp(prefix="heddle-user.")).resolve()
    (path / "run").mkdir(mode=0o700)
    bin_directory = Path(sys.executable).parent
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    home = Home(
        path,
        kept
        | {
            "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(path),
            "XDG_RUNTIME_DIR": str(path / "run"),
            "GIT_CONFIG_NOSYSTEM": "1",
        },
    )
    yield home
    for point in reversed(home.mounts()):
        subprocess.run(["fusermount3", "-uz", point], check=True)
    shutil.rmtree(path)


@pytest.fixture
def project(home: Home) -> Path:
    """A captured repository with two files."""
    path = home.path / "project"
    path.mkdir()
    (path / "main.py").write_text("print('hello')\n")
    (path / "notes").write_text("one\n")
    home.run("heddle", "init", cwd=path)
    home.run("heddle", "config", "set", "principal.name", "Ada", cwd=path)
    home.run("heddle", "config", "set", "principal.email", "ada@example.org", cwd=path)
    home.run("heddle", "capture", "-m", "first", cwd=path)
    return path


@dataclass(frozen=True)
class Step:
    """A command of the tour and the lines that it should print."""

    command: str
    expected: list[str]


def tour(text: str) -> list[Step]:
    """The commands of every ``console`` block, each with the output printed below it."""
    steps: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:], []))
            else:
                steps[-1].expected.append(line)
    return steps


def as_pattern(lines: list[str]) -> re.Pattern[str]:
    """What the README shows, where an ellipsis stands for any text, and alone on a line for any lines."""
    text = "\n".join(lines)
    return re.compile(".*".join(re.escape(part) for part in text.split("…")), re.DOTALL)


def play(home: Home, steps: list[Step]) -> list[str]:
    """Run the steps one after the other in one shell; what each of them printed."""
    script = "".join(f"printf '\\n{BEGIN}'\n{{ {step.command}\n}} 2>&1\n" for step in steps)
    done = home.attempt("bash", "-euo", "pipefail", "-c", script)
    outputs = [part.strip("\n") for part in done.stdout.split(f"\n{BEGIN}")[1:]]
    assert done.returncode == 0, f"{steps[len(outputs) - 1].command}\n{outputs[-1]}\n{done.stderr}"
    return outputs


def test_the_tour_of_the_readme_prints_what_it_shows(home: Home) -> None:
    """Every command works, in order, prints what the README says, and no mount is left at the end."""
    steps = tour((ROOT / "README.md").read_text())

    outputs = play(home, steps)

    assert len(steps) > 10
    for step, output in zip(steps, outputs, strict=True):
        assert as_pattern(step.expected).fullmatch(output), f"$ {step.command}\n{output}"
    assert home.mounts() == []


def test_the_python_of_the_readme_runs(home: Home, project: Path) -> None:
    """The README's Python example captures what it wrote, on its thread."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )

    home.run(sys.executable, "-c", "\n".join(blocks))

    assert home.run("heddle", "show", "agent-1:plan", cwd=project) == "one thing after the other\n"
    assert log(home, project, "agent-1")[0]["message"] == "a plan"


def test_an_output_that_differs_from_the_tour_is_seen() -> None:
    """The check itself: an ellipsis stands for any text, and nothing else does."""
    pattern = as_pattern(["captured …", "1 added"])

    assert pattern.fullmatch("captured 3f2a\n1 added")
    assert not pattern.fullmatch("captured 3f2a\n2 added")


def test_every_path_that_the_documents_link_to_exists() -> None:
    """No relative link in README, CONTRIBUTING, CHANGELOG or docs/ leads nowhere."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    ]

    assert links
    assert [f"{page.name}: {to}" for page, to in links if not (page.parent / to).exists()] == []


def log(home: Home, project: Path, thread: str) -> list[dict[str, object]]:
    states: list[dict[str, object]] = json.loads(
        home.run("heddle", "log", thread, "--json", cwd=project)
    )["states"]
    return states


SESSION = {
    "HEDDLE_AGENT_PROVIDER": "example",
    "HEDDLE_AGENT_MODEL": "model-a",
    "HEDDLE_AGENT_SESSION": "s-1",
}


def test_agent_sh_captures_what_a_command_changed(home: Home, project: Path) -> None:
    """examples/agent.sh: the command's changes are a state of its thread, under the agent's name."""
    home.run(EXAMPLES / "agent.sh", project, "tidy", "rm", "notes", **SESSION)

    newest = log(home, project, "tidy")[0]
    assert newest["message"] == "rm notes"
    assert newest["agent"] == {
        "provider": "example",
        "model": "model-a",
        "session": "s-1",
        "task": None,
    }
    assert (project / "notes").exists()
    assert home.mounts() == []


def test_agent_sh_runs_again_on_its_thread(home: Home, project: Path) -> None:
    """examples/agent.sh: a second run goes on from what the first one captured."""
    agent = EXAMPLES / "agent.sh"
    home.run(agent, project, "tidy", "sh", "-c", "echo two >> notes", **SESSION)
    home.run(agent, project, "tidy", "sh", "-c", "echo three >> notes", **SESSION)

    assert home.run("heddle", "show", "tidy:notes", cwd=project) == "one\ntwo\nthree\n"
    assert len(log(home, project, "tidy")) == 3


def test_agent_sh_returns_the_exit_code_of_the_command(home: Home, project: Path) -> None:
    """examples/agent.sh: a failed command's code comes through, and nothing is captured."""
    done = home.attempt(EXAMPLES / "agent.sh", project, "tidy", "sh", "-c", "rm notes; exit 3")

    assert done.returncode == 3
    assert len(log(home, project, "tidy")) == 1
    assert home.mounts() == []


def test_agent_sh_changes_nothing_when_the_command_does_not(home: Home, project: Path) -> None:
    """examples/agent.sh: a command that only looks succeeds and leaves no state."""
    home.run(EXAMPLES / "agent.sh", project, "tidy", "true")

    assert len(log(home, project, "tidy")) == 1


def test_two_agents_py_keeps_two_agents_apart(home: Home, project: Path) -> None:
    """examples/two_agents.py: each agent's changes are on its thread alone, under its own name."""
    printed = home.run(sys.executable, EXAMPLES / "two_agents.py", project)

    inventory = home.run("heddle", "show", "agent-1:INVENTORY", cwd=project)
    assert inventory.split() == ["main.py", "notes"]
    assert home.run("heddle", "show", "agent-1:notes", cwd=project) == "one\n"
    assert home.run("heddle", "show", "agent-2:notes", cwd=project).endswith("by agent-2\n")
    models = [log(home, project, thread)[0]["agent"] for thread in ("agent-1", "agent-2")]
    assert [agent["model"] for agent in models if isinstance(agent, dict)] == ["model-a", "model-b"]
    assert "agent-1: 1 added, 0 modified\nagent-2: 0 added, 2 modified\n" in printed
    assert home.mounts() == []
