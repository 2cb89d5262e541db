"""The command `plexus eval`: its options, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table as Grid

from policies.map_commands import WALK_QUICK_S, WALK_S, WALKS, WORD, eval_map
from robot.config import UserError, check_positive, check_writable

DRAWS, PIECES = 5, 40  # seeds where none are asked for: of the usual trials, of uneven ground
PIECES_QUICK = 3


@dataclass(frozen=True)
class Eval:
    """Judge policies in simulation, ours and those that can be imported, with one table."""

    policies: tyro.conf.Positional[tuple[Path, ...]]
    """policy files; or the word map: judge what perception makes of the ground against the truth"""
    terrain: tuple[str, ...] = ()
    """judge how they cross uneven ground instead: families such as boxes, or held-out for all those
    that nothing is trained on; an unknown name lists them"""
    difficulty: tuple[float, ...] = ()
    """m, of these terrains; what it measures depends on the family; default: three of its own"""
    eyes: tuple[Literal["true", "geomap", "off"], ...] = ("true",)
    """with --terrain: what policies that read a height scan see by, one column each: the truth, the
    map that perception makes of a simulated camera's pictures, or nothing"""
    json: Path | None = None
    """write the table and every trial there"""
    report: Path | None = None
    """write report.md into this folder; without --terrain also report.html, of maps maps.png"""
    net: Path | None = None
    """map: a TerrainNet to judge beside the untrained map"""
    robot: str = "g1"
    """a folder of configs/, or a robot.yaml"""
    jobs: int = 1
    """processes; the result is the same for any number"""
    seeds: int | None = None
    """draws of the world for each push direction, payload and delay (5); with --terrain, pieces of
    each ground (40); of maps, walks over each family under each camera (2)"""
    seconds: float = 20.0
    """length of an episode; not with --terrain, nor of maps"""
    record: bool = False
    """write what was found into the policy file itself (ours, not imported ones)"""
    quick: bool = False
    """a few short trials, to see that everything works"""
    engine: Literal["processes", "ray"] = "processes"
    """who shares out the work"""


def run_eval(args: Eval) -> int:
    """`plexus eval`; exit code 0 once everything was judged, well or badly."""
    check_positive(jobs=args.jobs, seconds=args.seconds)
    if args.seeds is not None:
        check_positive(seeds=args.seeds)
    check_writable(args.json)
    if args.report and args.report.exists() and not args.report.is_dir():
        raise UserError(f"{args.report}: is a file, expected a folder for the report")
    if args.quick and args.record:
        raise UserError("--record: a quick look is no judgement; leave out --quick")
    if args.policies == (WORD,):
        seeds, seconds = (1, WALK_QUICK_S) if args.quick else (args.seeds or WALKS, WALK_S)
        return eval_map(args.net, seeds, seconds, args.jobs, args.json, args.report)
    if args.net:
        raise UserError("--net: is judged as a map; expected the word map in place of policy files")
    if args.terrain:
        return _cross(args)
    if args.difficulty:
        raise UserError("--difficulty: is that of a terrain; expected --terrain, too")
    return _judge(args)


def _judge(args: Eval) -> int:
    """The usual trials, on flat ground."""
    from policies.eval_report import about, lines, write
    from policies.evaluate import QUICK, Plan, evaluate, record

    plan = replace(Plan(), seconds=args.seconds, seeds=args.seeds or DRAWS)
    with _progress() as told:
        table = evaluate(
            args.policies, args.robot, QUICK if args.quick else plan, args.jobs, args.engine, told
        )
    _show(lines(table), about(table))
    if args.json:
        args.json.write_text(json.dumps(table.to_dict(), indent=1) + "\n")
    if args.report:
        print(write(table, args.report))
    if args.record:
        for path in args.policies:
            print(record(table, path))
    return 0


def _cross(args: Eval) -> int:
    """Uneven ground."""
    from policies.eval_terrain import Plan, about, evaluate_terrain, grounds_of, lines, markdown

    if args.record:
        raise UserError("--record: writes the usual trials' figures; leave out --terrain")
    seeds = args.seeds or (PIECES_QUICK if args.quick else PIECES)
    plan = Plan(grounds_of(args.terrain, args.difficulty), seeds, eyes=args.eyes)
    with _progress() as told:
        table = evaluate_terrain(args.policies, plan, args.robot, args.jobs, args.engine, told)
    _show(lines(table), about(table))
    if args.json:
        args.json.write_text(json.dumps(table.to_dict(), indent=1) + "\n")
    if args.report:
        args.report.mkdir(parents=True, exist_ok=True)
        (args.report / "report.md").write_text(markdown(table), encoding="utf-8")
        print(args.report / "report.md")
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while trials run; gives what to tell how far they are."""
    bar = Progress(
        "trials", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("trials", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _show(text: list[list[str]], caption: str) -> None:
    grid = Grid(*text[0], caption=caption)
    for line in text[1:]:
        grid.add_row(*line)
    Console().print(grid)
