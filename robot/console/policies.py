"""Tells what policies a run has and could have: a process of its own reads their files.

Files of others are parsed where a crash, a flood of memory or half a second of import costs the
console nothing. A pilot loads one policy for its life and no run changes it: this only shows.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from robot.config import UserError
from robot.model import Robot, load_robot
from robot.node import RUN_FILE
from robot.runs import RunConfig, shipped_policies

MOST = 20
CPU_S = 30  # of the process
MEMORY = 4 << 30  # bytes, of addresses


def policy_lines(directory: Path) -> Generator[bytes]:
    """One JSON line per policy, the loaded one first, from the process; closing it ends that.

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


def candidates(run: RunConfig) -> list[Path]:
    """The run's policy, those that come with Plexus, and those in its folder; each file once."""
    loaded = [run.policy] if run.policy else []
    beside = sorted(run.policy.parent.glob("*.onnx")) if run.policy else []
    found = {path.resolve(): path for path in (*loaded, *shipped_policies().values(), *beside)}
    return list(found.values())[:MOST]


def row(path: Path, robot: Robot, run: RunConfig) -> dict[str, Any]:
    """What a page shows of one file.

    Returns:
        file, loaded, name, why (it would not run here; empty: it would), signed (by whom),
        unsigned (why it does not count as signed), ranges (vx, vy, yaw_rate: least and greatest),
        facts (where it is from and how it was judged).
    """
    from policies.manifest import check_policy, read_policy
    from policies.signature import verify

    loaded = run.policy is not None and path.resolve() == run.policy.resolve()
    told: dict[str, Any] = {
        "file": path.name, "loaded": loaded, "name": "", "why": "", "signed": "", "unsigned": "",
        "ranges": {}, "facts": {},
    }  # fmt: skip
    try:
        policy = read_policy(path)
        manifest = policy.manifest
        ranges = manifest.command_ranges
        told |= {
            "name": manifest.name,
            "ranges": {name: list(getattr(ranges, name)) for name in ("vx", "vy", "yaw_rate")},
            "facts": {"sha256": policy.sha256, **manifest.provenance},
        }
        check_policy(policy, robot, run.control_hz)
    except UserError as error:
        told["why"] = str(error)
    try:
        told["signed"] = verify(path).name
    except UserError as error:
        told["unsigned"] = str(error)
    return told


def rows(run: RunConfig) -> Iterator[dict[str, Any]]:
    """Of each candidate."""
    robot = load_robot(run.robot)
    for path in candidates(run):
        yield row(path, robot, run)


def main(directory: Path) -> None:
    """The process: prints, within its limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    run = RunConfig.model_validate_json((directory / RUN_FILE).read_text())
    for one in rows(run):
        print(json.dumps(one), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
