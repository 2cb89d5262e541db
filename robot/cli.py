"""The `plexus` command: one function per subcommand; a user's mistake is one sentence."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from policies.eval_commands import Eval, run_eval
from policies.train_commands import Train, bench_train, train
from robot import log_commands
from robot.camera_commands import CameraTool, camera
from robot.config import UserError, check_positive, check_writable, listing
from robot.doctor import Doctor, doctor
from robot.log_commands import LogTool, Replay
from robot.runs import ConsoleConfig, RunConfig, load_run, shipped_policies
from sim2real.emulator_commands import Emulate, emulate

NO_POLICY = (
    "no policy: the robot stands up on its gantry, is let down and stands; "
    "leave out --policy and it walks"
)

HANGING_SHARE = 0.3  # of the stand stiffness: holds legs in the air, and gives way to a hand


@dataclass(frozen=True)
class Run:
    """Run the robot, in simulation or in reality, until q, Ctrl-C or --seconds."""

    run: tyro.conf.Positional[str] = "sim"
    """a name under configs/runs, or a YAML file"""
    policy: str | None = None
    """policy file, name of one that comes with Plexus, or "none"; default: the run file's"""
    seconds: float | None = None
    """end after this long"""
    headless: bool = False
    """no keys, no table, no window"""
    command: str | None = None
    """vx,vy,yaw_rate to command all the time, in m/s, m/s, rad/s; e.g. 0.5,0,0"""
    arms: Literal["free", "swinging"] | None = None
    """what arms are commanded to do: nothing, or to swing"""
    json: Path | None = None
    """write the run's figures to this file"""
    video: Path | None = None
    """write a clip of the robot (simulation, where GL exists)"""
    seed: int | None = None
    """seed of the sensor noise"""
    collisions: Literal["full", "feet"] | None = None
    """collision geometry of the simulation"""
    terrain: str | None = None
    """simulation: ground to walk on, such as stairs-up; an unknown name lists them all"""
    terrain_seed: int | None = None
    """draws the terrain's sizes and places"""
    difficulty: float | None = None
    """m, of the terrain: height of a step, width of a gap and so on"""
    lockstep: bool = False
    """one process on simulated time: deterministic, faster than real time"""
    filter: bool = True
    """the safety filter; --no-filter only in lockstep, to compare"""
    provider: Literal["cpu", "cuda", "tensorrt"] | None = None
    """what computes the policy"""
    timing_factor: float | None = None
    """multiplies gap and age limits; simulation only"""
    console: Literal["yes", "no"] | None = None
    """serve the operator's console to a browser; default: unless --headless"""
    console_host: str | None = None
    """name or IPv4 address of this computer by which others' browsers come, over TLS (extra tls);
    default: the console is for this computer alone"""
    gamepad: bool = False
    """drive by a gamepad plugged into this computer"""
    log: Literal["yes", "no"] | None = None
    """leave a log of the run; default: yes, with --lockstep no"""
    camera: Literal["none", "sim", "v4l2", "replay"] | None = None
    """what publishes pictures; details are the run file's"""
    rgb: bool = False
    """with --camera sim: also pictures in colour, for the console, where there is GL"""
    unsigned_policy: bool = False
    """hardware and emulator: run a policy that nobody trusted has signed"""
    interface: str | None = None
    """hardware: network interface that the robot is connected to"""
    hang: bool = False
    """hardware: the robot hangs on a gantry and may be taken over; it stands up softly"""
    readonly: bool = False
    """hardware: listen only, write and ask nothing"""
    dry_run: bool = False
    """hardware: do everything, but send damping whatever the command is"""


@dataclass(frozen=True)
class Nodes:
    """Show the processes of the run that is going on."""

    json: bool = False
    """as JSON: name, pid, state"""


@dataclass(frozen=True)
class ConsoleAddress:
    """Print the address of the run's console, which opens once, and what its certificate is."""


@dataclass(frozen=True)
class Topics:
    """Show the table of topics."""

    json: bool = False
    """as JSON"""


@dataclass(frozen=True)
class Echo:
    """Print messages of a topic of the run that is going on."""

    topic: tyro.conf.Positional[str]
    """a name from `plexus topics`"""
    count: int | None = None
    """end after so many messages"""
    seconds: float | None = None
    """end after this long"""


@dataclass(frozen=True)
class Bench:
    """Measure this machine: ours against a floor of the same run, interleaved."""

    what: tyro.conf.Positional[Literal["runtime", "train"]] = "runtime"
    """the runtime, or a training loop beside its own physics"""
    json: Path | None = None
    """write the rows to this file"""
    policy: Path | None = None
    """policy for `path` and `inference`; without one a network of the same size is made"""
    seconds: float = 60.0
    """for everything together"""
    only: tuple[str, ...] = ()
    """names of the rows of the runtime to measure"""


@dataclass(frozen=True)
class PolicyImport:
    """Turn a policy of another project into ours: raw measurements in, joint targets out."""

    file: tyro.conf.Positional[Path]
    """their file"""
    out: Path | None = None
    """ours; default: their name with .plexus.onnx, in the current folder"""
    name: str | None = None
    """name in the manifest"""
    robot: str = "g1"
    """robot it is for"""


@dataclass(frozen=True)
class PolicyShow:
    """Print what a policy file says of itself."""

    file: tyro.conf.Positional[Path]
    """our policy file"""


@dataclass(frozen=True)
class PolicyCheck:
    """Check a policy file against a robot and run its test vectors."""

    file: tyro.conf.Positional[Path]
    """our policy file"""
    robot: str = "g1"
    """robot it is for"""


@dataclass(frozen=True)
class PolicySign:
    """Vouch for a policy file: writes a signature beside it."""

    file: tyro.conf.Positional[Path]
    """our policy file"""
    key: Path
    """your private key, readable by you alone"""
    create: bool = False
    """make that key first"""


@dataclass(frozen=True)
class PolicyVerify:
    """Say who has vouched for a policy file; refuses what a robot would."""

    file: tyro.conf.Positional[Path]
    """our policy file"""
    trusted: Path | None = None
    """file of trusted keys; default: PLEXUS_TRUSTED_KEYS, or ~/.config/plexus/trusted_keys"""


PolicyCommand = (
    Annotated[PolicyImport, tyro.conf.subcommand("import")]
    | Annotated[PolicyShow, tyro.conf.subcommand("show")]
    | Annotated[PolicyCheck, tyro.conf.subcommand("check")]
    | Annotated[PolicySign, tyro.conf.subcommand("sign")]
    | Annotated[PolicyVerify, tyro.conf.subcommand("verify")]
)


@dataclass(frozen=True)
class Policy:
    """Import, show, check and sign policy files."""

    action: PolicyCommand = field()


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Nodes, tyro.conf.subcommand("nodes")]
    | Annotated[ConsoleAddress, tyro.conf.subcommand("console")]
    | Annotated[Topics, tyro.conf.subcommand("topics")]
    | Annotated[Echo, tyro.conf.subcommand("echo")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Policy, tyro.conf.subcommand("policy")]
    | Annotated[LogTool, tyro.conf.subcommand("log")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Emulate, tyro.conf.subcommand("emulate")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[CameraTool, tyro.conf.subcommand("camera")]
)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn a user's mistake into one sentence."""
    command = tyro.cli(
        Command,
        prog="plexus",
        description="A runtime for humanoid robots.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    try:
        return RUNNERS[type(command)](command)
    except UserError as error:
        print(f"plexus: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130  # as shells say it


# --- run ----------------------------------------------------------------------------------------


def run(args: Run) -> int:
    """`plexus run`: lockstep in this process, or the nodes in theirs."""
    check_positive(seconds=args.seconds)
    config = load_run(args.run, _overrides(args))
    if not args.filter and not args.lockstep:
        raise UserError("--no-filter: the safety filter can be switched off in --lockstep only")
    if not config.simulated and args.lockstep:
        raise UserError(f"--lockstep: driver {config.driver!r} is no simulation")
    if args.lockstep and config.camera.source not in ("none", "sim"):
        raise UserError(f"--camera {config.camera.source}: in --lockstep only sim or none")
    check_writable(args.json, args.video)
    _check_robot(config)
    if not args.lockstep:
        _check_console(config.console)
    if config.policy is None:
        print(f"plexus: {NO_POLICY}", file=sys.stderr)
    result = _run_lockstep(args, config) if args.lockstep else _run_nodes(args, config)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    _print_summary(result)
    return 0


def _overrides(args: Run) -> dict[str, Any]:
    """Keys of the run file that the command line replaces."""
    given: dict[str, Any] = {
        "seed": args.seed, "provider": args.provider, "timing_factor": args.timing_factor,
        "sim.collisions": args.collisions, "sim.terrain.name": args.terrain,
        "sim.terrain.seed": args.terrain_seed, "sim.terrain.difficulty": args.difficulty,
        "operator.arms": args.arms, "camera.source": args.camera,
        "camera.rgb": True if args.rgb else None,
        "unsigned_policy": True if args.unsigned_policy else None,
        "operator.gamepad": True if args.gamepad else None,
        "log.enabled": args.log == "yes" if args.log else False if args.lockstep else None,
    }  # fmt: skip
    if args.policy not in (None, "none"):
        given["policy"] = _chosen_policy(args.policy)
    if args.command is not None:
        given["operator.velocity"] = parse_velocity(args.command)
    given |= _hardware_overrides(args)
    if args.headless:
        given |= {"operator.keyboard": False, "viewer": False, "console.enabled": False}
    if args.console is not None:
        given["console.enabled"] = args.console == "yes"
    if args.console_host is not None:
        if args.console == "no":
            raise UserError("--console-host: got --console no beside it, expected a console")
        given |= {"console.enabled": True, "console.host": args.console_host}
    given = {key: value for key, value in given.items() if value is not None}
    return given | ({"policy": None} if args.policy == "none" else {})


def _hardware_overrides(args: Run) -> dict[str, Any]:
    """Keys of a run on hardware, refused for others."""
    names = ("interface", "hang", "readonly", "dry_run")
    given = {f"unitree.{name}": value for name in names if (value := getattr(args, name))}
    if given and (driver := load_run(args.run).driver) != "unitree":
        options = listing("--" + key.split(".")[1].replace("_", "-") for key in given)
        raise UserError(f"{options}: for robots only; the driver of {args.run!r} is {driver!r}")
    return given | ({"unitree.stand_share": HANGING_SHARE} if args.hang else {})


def _chosen_policy(text: str) -> str:
    """The name of a shipped policy as it is, a path as an absolute one."""
    shipped, path = shipped_policies(), Path(text).expanduser().absolute()
    if text in shipped:
        return text
    if not path.suffix and not path.exists():
        raise UserError(
            f"--policy: got {text!r}, expected a file, none, or one that comes with Plexus; "
            f"available: {listing(shipped)}"
        )
    return str(path)


def parse_velocity(text: str) -> list[float]:
    """'0.5,0,0' to [vx, vy, yaw rate].

    Raises:
        UserError: not three finite numbers.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3 or not all(abs(v) < 100.0 for v in values):
        raise UserError(
            f"--command: got {text!r}, expected three numbers vx,vy,yaw_rate in m/s, m/s, rad/s, "
            "for example 0.5,0,0"
        )
    return values


def _check_robot(config: RunConfig) -> None:
    """Refuse a bad robot, policy or network interface before any process starts."""
    from policies.manifest import check_policy, read_policy
    from robot.model import load_robot
    from robot.pilot import check_signature

    robot = load_robot(config.robot)
    if config.unsigned_policy:
        print("plexus: --unsigned-policy: nobody vouches for this policy", file=sys.stderr)
    if config.policy is not None:
        check_signature(config)
        check_policy(read_policy(config.policy), robot, config.control_hz)
    if config.driver == "unitree":
        from drivers.dds import check_interface

        check_interface(config.unitree.interface, config.unitree.network)


def _check_console(console: ConsoleConfig) -> None:
    """Refuse a host that cannot be served, and show by what its certificate is known."""
    if not console.enabled or not console.host:
        return
    from robot.console.node import listen
    from robot.console.tls import own_certificate

    for listener in listen(0, console.host):
        listener.close()
    made = own_certificate(console.host)
    print(f"plexus: the console's certificate has SHA-256 {made.fingerprint}", file=sys.stderr)


def _run_lockstep(args: Run, config: RunConfig) -> dict[str, Any]:
    from robot.log_writer import open_log
    from robot.model import load_robot
    from robot.pilot import load_pilot
    from robot.topics import make_codecs
    from sim2real.lockstep import START_NS, Lockstep, LockstepOptions, walk

    robot = load_robot(config.robot)
    pilot = load_pilot(config, robot) if config.policy is not None else None
    log = None
    if config.log.enabled:
        log = open_log(config, robot, make_codecs(robot), now_ns=START_NS, epoch_ns=time.time_ns())
    options = LockstepOptions(filtered=args.filter, log=log)
    velocity = config.operator.velocity or (0.0, 0.0, 0.0)
    poses: list[tuple[float, Any]] = []
    lockstep = Lockstep(config, pilot, velocity, options, robot=robot)
    if args.video:
        lockstep.on_truth = lambda truth: poses.append(truth_pose(truth))
    try:
        result = walk(lockstep, args.seconds or 20.0)
    finally:
        if log:
            log.close("done" if lockstep.ticks else "failed")
    result["log"] = str(log.folder) if log else None
    result["provider"] = pilot.session.provider if pilot else None
    _write_video(args, config, poses, result)
    return result


def _run_nodes(args: Run, config: RunConfig) -> dict[str, Any]:
    from robot.messages import Message, Truth
    from robot.nodes import Manager

    live = config.operator.keyboard and sys.stdin.isatty()
    manager = Manager(config, live)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(manager, "stopping", True))
    poses: list[tuple[float, Any]] = []

    def keep_pose(message: Message) -> None:
        if isinstance(message, Truth):
            poses.append(truth_pose(message))

    if args.video:
        manager.on_message = keep_pose
    begin = time.monotonic()
    try:
        manager.start()
        begin = time.monotonic()
        manager.watch(args.seconds)
    finally:
        elapsed = time.monotonic() - begin
        manager.stop()
        manager.close()
    result = manager.summary.to_dict()
    _add_rates(result, manager, elapsed)
    _write_video(args, config, poses, result)
    return result


def _add_rates(result: dict[str, Any], manager: Any, elapsed: float) -> None:
    from robot.control_node import REALTIME_FILE

    info = manager.policy_info
    result["provider"] = info.provider if info is not None else None
    result["policy"] = info.name if info is not None else None
    result["seconds"] = round(elapsed, 3)
    report = manager.directory / REALTIME_FILE
    result["realtime"] = json.loads(report.read_text()) if report.exists() else None
    result["log"] = manager.log_folder()
    result["nodes"] = {name: child.state for name, child in manager.children.items()}


def truth_pose(truth: Any) -> tuple[float, Any]:
    """(seconds, qpos) of a truth message, for rendering."""
    import numpy as np

    parts = (truth.base_pos_w, truth.base_quat_wxyz, truth.joint_pos)
    return truth.sim_time_ns * 1e-9, np.concatenate(parts)


def _write_video(
    args: Run, config: RunConfig, poses: list[tuple[float, Any]], result: dict[str, Any]
) -> None:
    if args.video is None:
        return
    from robot.model import load_robot
    from robot.video import write_clip

    result["video"] = write_clip(args.video, load_robot(config.robot), poses, config.sim.terrain)


def _print_summary(result: dict[str, Any]) -> None:
    """What a person wants to know of a run, in a few lines."""
    modes = "  ".join(f"{seconds:.1f}s {name}" for seconds, name in result["modes"])
    print(f"modes      {modes or '-'}")
    if result.get("mean_velocity_b"):
        vx, vy, yaw = result["mean_velocity_b"]
        print(f"walked     {vx:+.3f} {vy:+.3f} m/s, {yaw:+.3f} rad/s (heading frame)")
    print(f"fell       {'YES' if result['fell'] else 'no'}")
    gantry = result["gantry"]
    if gantry["release_time_s"] is not None:
        print(
            f"gantry     let go at {gantry['release_time_s']:.1f} s (simulated), "
            f"carried {gantry['support_force_max_n']:.0f} N at most"
        )
    if control := result.get("control"):
        late, cpu = control["lateness_us"], control["cpu_us"]
        print(
            f"control    {control.get('rate_hz', 0):.1f} Hz, {control['skipped_ticks']} skipped, "
            f"late p50 {late['p50']:.0f} us p99 {late['p99']:.0f} us max {late['max']:.0f} us, "
            f"CPU p50 {cpu['p50']:.0f} us a tick"
        )
        memory = control["after_warm_up"]
        print(
            f"memory     {memory['page_faults']} page faults, {memory['collections']} collections, "
            f"{memory['allocated_blocks_growth']:+d} blocks in control after warm-up"
        )
    if result.get("path_us") and isinstance(result["path_us"], dict):
        print(
            f"path       sensing to target p50 {result['path_us']['p50']:.0f} us, "
            f"sensing to write p50 {result['write_us']['p50']:.0f} us"
        )
    if "realtime_factor" in result:
        print(f"lockstep   {result['realtime_factor']:.1f} x real time")
        print(f"stream     sha256 {result['stream_sha256']}")
    print(f"faults     {', '.join(result['faults']) or 'none'}")
    for reason in result["reasons"]:
        print(f"           {reason}")
    print(f"timing     factor {result['timing_factor']:g}")
    if result.get("video"):
        print(f"video      {result['video']}")
    if result.get("log"):
        print(f"log        {result['log']}")


# --- looking at a run ---------------------------------------------------------------------------


def nodes(args: Nodes) -> int:
    """`plexus nodes`."""
    from robot.bus import runtime_directory
    from robot.nodes import NODES, read_state

    rows = read_state(runtime_directory())
    if args.json:
        print(json.dumps(rows))
        return 0
    docs = {row.name: row.doc for row in NODES} | {"manager": "starts, watches, stops the others"}
    table = Table("node", "pid", "state", "what it does")
    for row in rows:
        loaded = f"; {row['policy']} is loaded" if row.get("policy") else ""
        table.add_row(row["name"], str(row["pid"] or "-"), row["state"], docs[row["name"]] + loaded)
    Console().print(table)
    return 0


def console_address(args: ConsoleAddress) -> int:
    """`plexus console`."""
    from robot.bus import runtime_directory
    from robot.node import CONSOLE_FILE

    path = runtime_directory() / CONSOLE_FILE
    if not path.exists():
        raise UserError("no console: no run is going on, or it was started without one")
    print(path.read_text().strip())
    return 0


def topics(args: Topics) -> int:
    """`plexus topics`."""
    from robot.topics import TOPICS

    if args.json:
        rows = [
            {"name": t.name, "message": t.message.__name__, "rate": t.rate,
             "publisher": t.publisher, "logged": t.logged}
            for t in TOPICS
        ]  # fmt: skip
        print(json.dumps(rows))
        return 0
    table = Table("topic", "message", "rate", "publisher", "logged", "what it is")
    for t in TOPICS:
        logged = "yes" if t.logged else "no"
        table.add_row(t.name, t.message.__name__, t.rate, t.publisher, logged, t.doc)
    Console().print(table)
    return 0


def echo(args: Echo) -> int:
    """`plexus echo TOPIC`: one JSON object per message."""
    import zmq

    from robot.bus import Subscriber, runtime_directory
    from robot.model import load_robot
    from robot.node import RUN_FILE
    from robot.nodes import read_state
    from robot.topics import TOPICS, make_codecs

    check_positive(count=args.count, seconds=args.seconds)
    names = [t.name for t in TOPICS]
    if args.topic not in names:
        raise UserError(f"topic {args.topic!r} is unknown; available: {listing(names, 99)}")
    directory = runtime_directory()
    if read_state(directory)[0]["state"] != "running":
        raise UserError("no run is going on here; start one with `plexus run sim`")
    config = RunConfig.model_validate_json((directory / RUN_FILE).read_text())
    codec = make_codecs(load_robot(config.robot))[args.topic]
    subscriber = Subscriber(zmq.Context(), directory, {args.topic: codec}, every=True)
    end = None if args.seconds is None else time.monotonic() + args.seconds
    left = args.count
    try:
        while left != 0 and (end is None or time.monotonic() < end):
            if message := subscriber.receive(50):
                print(json.dumps(message.to_dict()), flush=True)
                left = None if left is None else left - 1
    except KeyboardInterrupt:
        pass
    return 0


# --- policies, bench ----------------------------------------------------------------------------


def policy(args: Policy) -> int:
    """`plexus policy import|show|check|sign|verify`."""
    return RUNNERS[type(args.action)](args.action)


def policy_import(args: PolicyImport) -> int:
    """Import, check and test before anything is written."""
    from policies.importers import import_policy
    from policies.manifest import check_policy, pack_policy, write_policy
    from policies.session import PolicySession, verify_golden
    from robot.model import load_robot

    out = args.out or Path(f"{args.file.stem}.plexus.onnx")
    check_writable(out)
    robot = load_robot(args.robot)
    model, manifest = import_policy(args.file, robot, args.name)
    packed = pack_policy(model, manifest, out)
    check_policy(packed, robot)
    worst = verify_golden(PolicySession(packed), packed.manifest)
    write_policy(out, model, manifest)
    print(
        f"{out}: {manifest.name}, imported from {args.file.name}; test vectors within {worst:.1e}"
    )
    print(f"run it: plexus run sim --policy {out}")
    return 0


def policy_show(args: PolicyShow) -> int:
    """Print the manifest for people."""
    from policies.manifest import describe, read_policy

    print(describe(read_policy(args.file)))
    return 0


def policy_check(args: PolicyCheck) -> int:
    """Loader's checks, robot's checks, test vectors."""
    from policies.manifest import check_policy, read_policy
    from policies.session import PolicySession, verify_golden
    from robot.model import load_robot

    file = read_policy(args.file)
    check_policy(file, load_robot(args.robot))
    worst = verify_golden(PolicySession(file), file.manifest)
    print(f"{args.file}: fits {args.robot}; test vectors within {worst:.1e}")
    return 0


def policy_sign(args: PolicySign) -> int:
    """Sign, after the loader's checks: nobody vouches for what cannot be loaded."""
    from policies.manifest import read_policy
    from policies.signature import create_key, sign, signature_path, trusted_keys_path

    read_policy(args.file)
    if args.create:
        create_key(args.key)
    public = sign(args.file, args.key)
    print(f"{signature_path(args.file)}: signed. Who trusts you has this line in")
    print(f"{trusted_keys_path()}:\n{public} your-name")
    return 0


def policy_verify(args: PolicyVerify) -> int:
    """Who signed."""
    from policies.signature import verify

    signed = verify(args.file, args.trusted)
    print(f"{args.file}: signed by {signed.name} ({signed.key[:16]}...)")
    return 0


def bench(args: Bench) -> int:
    """`plexus bench`."""
    from robot.bench import main as measure

    if args.what == "train":
        if args.policy is not None or args.only:
            raise UserError("bench train: --policy and --only are for the runtime")
        return bench_train(args.json, args.seconds)
    return measure(args.json, args.policy, args.seconds, args.only)


RUNNERS: dict[type, Any] = {
    Run: run, Nodes: nodes, ConsoleAddress: console_address, Topics: topics, Echo: echo,
    Bench: bench, Policy: policy,
    PolicyImport: policy_import, PolicyShow: policy_show, PolicyCheck: policy_check,
    PolicySign: policy_sign, PolicyVerify: policy_verify,
    **log_commands.RUNNERS, Eval: run_eval, Train: train,
    Emulate: emulate, Doctor: doctor, CameraTool: camera,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
