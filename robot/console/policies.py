"""Tells what policies a run has and could have: a process of its own reads their files.

Files of others are parsed where a crash, a flood of memory or half a second of import costs the
console nothing. Which one runs, and choosing another, is not its business (robot/choice.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from robot.choice import bound, offered
from robot.config import UserError
from robot.model import Robot, load_robot
from robot.node import RUN_FILE
from robot.runs import RunConfig


def policy_lines(directory: Path) -> Generator[bytes]:
    """One JSON line per policy, the run's own first, from the process; closing it ends that.

    Args:
        directory: the run's, with RUN_FILE.
    """
    command = [sys.executable, "-m", __name__, str(directory)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        try:
            yield from process.stdout
        finally:
            process.kill()


def row(path: Path, robot: Robot, run: RunConfig) -> dict[str, Any]:
    """What a page shows of one file.

    Returns:
        file, id (what messages call it, 16 digits), name, why (it would not run here; empty: it
        would), signed (by whom), unsigned (why it does not count as signed), ranges (vx, vy,
        yaw_rate: least and greatest), facts (where it is from and how it was judged).
    """
    from policies.manifest import read_policy
    from policies.signature import verify
    from robot.pilot import load_pilot

    told: dict[str, Any] = {
        "file": path.name, "id": "", "name": "", "why": "", "signed": "", "unsigned": "",
        "ranges": {}, "facts": {},
    }  # fmt: skip
    try:
        policy = read_policy(path)
        manifest = policy.manifest
        ranges = manifest.command_ranges
        told |= {
            "id": f"{policy.policy_id:016x}",
            "name": manifest.name,
            "ranges": {name: list(getattr(ranges, name)) for name in ("vx", "vy", "yaw_rate")},
            "facts": {"sha256": policy.sha256, **manifest.provenance},
        }
        # As the pilot would, but for the processor: a GPU has nothing to do for a list.
        load_pilot(run.model_copy(update={"policy": path, "provider": "cpu"}), robot)
    except UserError as error:
        told["why"] = str(error)
    try:
        told["signed"] = verify(path).name
    except UserError as error:
        told["unsigned"] = str(error)
    return told


def rows(run: RunConfig) -> Iterator[dict[str, Any]]:
    """Of each policy that is offered."""
    robot = load_robot(run.robot)
    for path in offered(run):
        yield row(path, robot, run)


def main(directory: Path) -> None:
    """The process: prints, within its limits."""
    run = RunConfig.model_validate_json((directory / RUN_FILE).read_text())
    bound(run)
    for one in rows(run):
        print(json.dumps(one), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
