"""The commands `plexus log` and `plexus replay`: their options, and what they print."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Column, Table

from robot.config import UserError, check_positive, check_writable, listing
from robot.runs import default_log_folder

LAST = "last"  # names the newest log


@dataclass(frozen=True)
class LogList:
    """List the logs of a folder, oldest first."""

    folder: tyro.conf.Positional[Path | None] = None
    """default: PLEXUS_LOG_DIR, else logs/"""
    json: bool = False
    """as JSON"""


@dataclass(frozen=True)
class LogInfo:
    """Duration, topics, rates, gaps, losses, modes and faults of a log."""

    log: tyro.conf.Positional[str] = LAST
    """a log's folder, its name, one of its files, or "last" for the newest"""
    json: bool = False
    """as JSON"""


@dataclass(frozen=True)
class LogRecover:
    """Make whole files of those that a crash left unfinished."""

    log: tyro.conf.Positional[str] = LAST
    """a log's folder, its name, one of its files, or "last" for the newest"""
    out: Path | None = None
    """write there and leave the originals as they are"""


@dataclass(frozen=True)
class LogCat:
    """Print a topic's messages, one JSON object per line."""

    log: tyro.conf.Positional[str]
    """a log's folder, its name, one of its files, or "last" for the newest"""
    topic: tyro.conf.Positional[str]
    """a name from `plexus log info`"""
    fields: tuple[str, ...] = ()
    """fields to print, e.g. mode joint_pos[3]; none: all"""
    between: tuple[float, float] | None = None
    """from and to, in seconds since the log's start"""
    limit: int | None = None
    """end after so many messages"""


@dataclass(frozen=True)
class LogPlot:
    """Draw fields over time into a PNG, with modes and faults."""

    log: tyro.conf.Positional[str]
    """a log's folder, its name, one of its files, or "last" for the newest"""
    fields: tyro.conf.Positional[tuple[str, ...]]
    """e.g. low_state.joint_pos[left_knee_joint] timing.lateness_us"""
    out: Path = Path("plot.png")
    """the picture"""
    between: tuple[float, float] | None = None
    """from and to, in seconds since the log's start"""


@dataclass(frozen=True)
class LogExport:
    """Write a log in another format: tables for analysis, or a data set for learning."""

    logs: tyro.conf.Positional[tuple[str, ...]]
    """one log, or several for lerobot"""
    to: Literal["parquet", "csv", "lerobot"]
    """the format"""
    out: Path
    """a folder"""
    topics: tuple[str, ...] = ()
    """parquet and csv: topics to write; none: all of ours"""
    between: tuple[float, float] | None = None
    """parquet and csv: from and to, in seconds since the log's start"""
    fps: int = 50
    """lerobot: frames per second"""
    task: str = "walk"
    """lerobot: what the robot was doing, in words"""
    whole: bool = False
    """lerobot: every mode counts, not only POLICY and HOLD"""


@dataclass(frozen=True)
class LogLabel:
    """Say from a log with frames what the ground was, and how far the online map was off it."""

    log: tyro.conf.Positional[str] = LAST
    """a log's folder, its name, one of its files, or "last" for the newest"""
    out: Path | None = None
    """the labels, as arrays for NumPy; default: labels.npz beside the log's files"""
    json: bool = False
    """as JSON"""


LogCommand = (
    Annotated[LogList, tyro.conf.subcommand("list")]
    | Annotated[LogInfo, tyro.conf.subcommand("info")]
    | Annotated[LogRecover, tyro.conf.subcommand("recover")]
    | Annotated[LogCat, tyro.conf.subcommand("cat")]
    | Annotated[LogPlot, tyro.conf.subcommand("plot")]
    | Annotated[LogExport, tyro.conf.subcommand("export")]
    | Annotated[LogLabel, tyro.conf.subcommand("label")]
)


@dataclass(frozen=True)
class LogTool:
    """List, show, repair, print, plot, export and label logs."""

    action: LogCommand = field()


@dataclass(frozen=True)
class Replay:
    """Run a log again: look at it (R0), re-run its stages (R1), hold physics against it (R2-R5)."""

    log: tyro.conf.Positional[str] = LAST
    """a log's folder, its name, one of its files, or "last" for the newest"""
    level: Literal["R0", "R1", "R2", "R3", "R4", "R5"] = "R1"
    """R0 look; R1 stages again, byte for byte; R2 short predictions by physics; R3 commands in open
    loop; R4 closed loop from a moment; R5 another policy in shadow"""
    policy: Path | None = None
    """R1, R4, R5: another policy than the log's"""
    robot: Path | None = None
    """R1 to R4: another robot.yaml than the log's"""
    start: Annotated[float | None, tyro.conf.arg(name="from")] = None
    """R3, R4: moment to begin at, in seconds since the log's start"""
    between: tuple[float, float] | None = None
    """R0: from and to, in seconds since the log's start"""
    seconds: float | None = None
    """R3, R4: how long, from that moment on"""
    video: Path | None = None
    """R0: write a clip"""
    json: Path | None = None
    """write the result to this file"""
    report: Path | None = None
    """write report.json and report.html into this folder"""
    accept: Path | None = None
    """R1: write a new reference log, with what the stages put out now, into this folder"""


# --- plexus log ---------------------------------------------------------------------------------


def find_log(name: str) -> Path:
    """The log that a person means.

    Raises:
        UserError: there is none; names those there are.
    """
    folder = default_log_folder()
    known = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if name == LAST and known:
        return folder / known[-1]
    for path in (Path(name).expanduser(), folder / name):
        if path.exists():
            return path
    raise UserError(f"log {name!r} is unknown; available in {folder}: {listing(known[-5:])}")


def log(args: LogTool) -> int:
    """`plexus log`."""
    return RUNNERS[type(args.action)](args.action)


def log_list(args: LogList) -> int:
    """`plexus log list`."""
    from robot.log_info import list_logs

    rows = list_logs(args.folder or default_log_folder())
    if args.json:
        print(json.dumps(rows))
        return 0
    table = Table(Column("log", no_wrap=True), "duration", "size", "state", "policy", "last mode")
    for row in rows:
        table.add_row(
            row["name"], f"{row['duration_s']:.1f} s", f"{row['size'] / 1e6:.1f} MB",
            row["state"], row["policy"], (row["modes"] or [""])[-1],
        )  # fmt: skip
    Console().print(table)
    return 0


def log_info(args: LogInfo) -> int:
    """`plexus log info`."""
    from robot.log import Log
    from robot.log_info import info, print_info

    told = info(Log(find_log(args.log)))
    print(json.dumps(told)) if args.json else print_info(told)
    return 0


def log_recover(args: LogRecover) -> int:
    """`plexus log recover`; exit code 3 if something was lost, as other tools of this format."""
    from robot.recover import recover

    done = recover(find_log(args.log), args.out)
    for line in done.damage:
        print(f"damage     {line}")
    for path in done.segments:
        print(f"recovered  {path}")
    for path in done.kept:
        print(f"kept       {path}")
    print(f"{done.messages} messages" if done.segments else "nothing to do")
    return 3 if done.kept else 0


def log_cat(args: LogCat) -> int:
    """`plexus log cat`."""
    from robot.log import Log
    from robot.log_info import cat

    check_positive(limit=args.limit)
    for line in cat(
        Log(find_log(args.log)), args.topic, args.between, args.fields or None, args.limit
    ):
        print(line)
    return 0


def log_plot(args: LogPlot) -> int:
    """`plexus log plot`."""
    from robot.log import Log
    from robot.log_plot import plot

    print(plot(Log(find_log(args.log)), args.fields, args.out, args.between))
    return 0


def log_export(args: LogExport) -> int:
    """`plexus log export`."""
    from robot.log import Log
    from robot.log_export import to_csv, to_parquet
    from robot.log_lerobot import to_lerobot

    logs = [Log(find_log(name)) for name in args.logs]
    if args.to == "lerobot":
        print(to_lerobot(logs, args.out, args.fps, args.task, args.whole))
        return 0
    if len(logs) != 1:
        raise UserError(f"--to {args.to}: got {len(logs)} logs, expected one")
    write = to_csv if args.to == "csv" else to_parquet
    for path in write(logs[0], args.out, args.topics, args.between):
        print(path)
    return 0


def log_label(args: LogLabel) -> int:
    """`plexus log label`."""
    from robot.log import Log
    from sim2real.hindsight import LABELS, Hindsight, write
    from sim2real.hindsight_figures import figures, show
    from sim2real.replay import setup_of

    check_writable(args.out)
    opened = Log(find_log(args.log))
    with tempfile.TemporaryDirectory(prefix="plexus-") as folder:
        hindsight = Hindsight(opened, *setup_of(opened, Path(folder)))
    labels = hindsight.label()
    beside = opened.path if opened.path.is_dir() else opened.path.parent
    path = write(labels, hindsight.maps.records, args.out or beside / LABELS)
    found = figures(labels, hindsight.maps.records)
    if args.json:
        print(json.dumps(found | {"labels": str(path)}))
        return 0
    show(found, labels)
    print(path)
    return 0


# --- plexus replay ------------------------------------------------------------------------------


def replay(args: Replay) -> int:
    """`plexus replay`; exit code 1 if the log and today's code differ."""
    from robot.log import Log

    check_positive(seconds=args.seconds)
    check_writable(args.json, args.video)
    opened = Log(find_log(args.log))
    with tempfile.TemporaryDirectory(prefix="plexus-") as folder:
        result = LEVELS[args.level](args, opened, Path(folder))
    for note in result["notes"]:
        print(note)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.report:
        from sim2real.report import write

        print(write({args.level: result}, args.report))
    print(f"{args.level}: {result['verdict']}")
    return 0 if result["verdict"] in ("same", "done") else 1


Level = Callable[[Replay, Any, Path], dict[str, Any]]  # options, log, scratch folder -> result


def level_0(args: Replay, opened: Any, folder: Path) -> dict[str, Any]:
    """Look."""
    from sim2real.look import look

    return look(opened, folder, args.between, args.video)


def level_1(args: Replay, opened: Any, folder: Path) -> dict[str, Any]:
    """Stages again."""
    from sim2real.reference import accept
    from sim2real.replay import replay

    if args.accept:
        return accept(opened, args.accept, args.policy, args.robot)
    return replay(opened, folder, args.policy, args.robot)


def level_2(args: Replay, opened: Any, folder: Path) -> dict[str, Any]:
    """Short predictions."""
    from sim2real.resimulate import predict

    return predict(opened, folder, robot=args.robot)


def level_3(args: Replay, opened: Any, folder: Path) -> dict[str, Any]:
    """Commands in open loop."""
    from sim2real.open_loop import open_loop

    return open_loop(opened, folder, args.start, args.seconds or 3.0, args.robot)


def level_4(args: Replay, opened: Any, folder: Path) -> dict[str, Any]:
    """Closed loop from a moment."""
    from sim2real.closed_loop import closed_loop

    seconds = args.seconds or 10.0
    return closed_loop(opened, folder, args.start, args.policy, seconds, args.robot)


def level_5(args: Replay, opened: Any, folder: Path) -> dict[str, Any]:
    """Another policy in shadow."""
    from sim2real.shadow import shadow

    if args.policy is None:
        raise UserError("--level R5: needs another policy; name it with --policy")
    return shadow(opened, folder, args.policy)


LEVELS: dict[str, Level] = {
    "R0": level_0, "R1": level_1, "R2": level_2, "R3": level_3, "R4": level_4, "R5": level_5,
}  # fmt: skip

RUNNERS: dict[type, Any] = {
    LogTool: log, LogList: log_list, LogInfo: log_info, LogRecover: log_recover, LogCat: log_cat,
    LogPlot: log_plot, LogExport: log_export, LogLabel: log_label, Replay: replay,
}  # fmt: skip
