"""The command `plexus eval`: its options, and what it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table as Grid

from policies.map_commands import WORD, eval_map
from robot.config import UserError, check_positive, check_writable


@dataclass(frozen=True)
class Eval:
    """Judge policies in simulation, ours and those that can be imported, with one table."""

    policies: tyro.conf.Positional[tuple[Path, ...]]
    """policy files; or the word map: judge what perception makes of the ground against the truth"""
    json: Path | None = None
    """write the table and every trial there"""
    report: Path | None = None
    """write report.html and report.md into this folder; of maps report.md and maps.png"""
    net: Path | None = None
    """map: a TerrainNet to judge beside the untrained map; default: the one that ships, if any"""
    robot: str = "g1"
    """a folder of configs/, or a robot.yaml"""
    jobs: int = 1
    """processes; the result is the same for any number"""
    seeds: int = 5
    """draws of the world for each push direction, for payload and for delay"""
    seconds: float = 20.0
    """length of an episode"""
    record: bool = False
    """write what was found into the policy file itself (ours, not imported ones)"""
    quick: bool = False
    """a few short trials, to see that everything works"""
    engine: Literal["processes", "ray"] = "processes"
    """who shares out the work"""


def run_eval(args: Eval) -> int:
    """`plexus eval`; exit code 0 once everything was judged, well or badly."""
    from policies.eval_report import about, lines, write
    from policies.evaluate import QUICK, Plan, evaluate, record

    check_positive(jobs=args.jobs, seeds=args.seeds, seconds=args.seconds)
    check_writable(args.json)
    if args.report and args.report.exists() and not args.report.is_dir():
        raise UserError(f"{args.report}: is a file, expected a folder for the report")
    if args.quick and args.record:
        raise UserError("--record: a quick look is no judgement; leave out --quick")
    if args.policies == (WORD,):
        seeds = 1 if args.quick else args.seeds
        return eval_map(args.net, seeds, args.seconds, args.jobs, args.json, args.report)
    plan = QUICK if args.quick else replace(Plan(), seconds=args.seconds, seeds=args.seeds)
    bar = Progress(
        "trials", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("trials", total=None)
        table = evaluate(
            args.policies, args.robot, plan, args.jobs, args.engine,
            lambda done, of: bar.update(task, completed=done, total=of),
        )  # fmt: skip
    text = lines(table)
    grid = Grid(*text[0], caption=about(table))
    for line in text[1:]:
        grid.add_row(*line)
    Console().print(grid)
    if args.json:
        args.json.write_text(json.dumps(table.to_dict(), indent=1) + "\n")
    if args.report:
        print(write(table, args.report))
    if args.record:
        for path in args.policies:
            print(record(table, path))
    return 0
