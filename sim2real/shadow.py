"""Another policy beside the one that was logged, over the same inputs, without acting: level R5.

It sees what the logged policy saw and keeps its own carry. Where the two disagree, the robot would
have gone elsewhere and seen something else: from there on this is a hint and no prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot.config import UserError
from robot.log import Log
from robot.messages import Mode, PolicyInput
from robot.modes import WALKING
from robot.pilot import Pilot, load_pilot
from robot.topics import make_codecs
from sim2real.motion import other_machine
from sim2real.replay import Maps, Rows, setup_of

NOTICEABLE = 0.1  # rad
WORST = 10  # moments told
APART_S = 0.5  # between two of them


class Answers:
    """Targets of a log with the inputs that they answer.

    Args:
        log: where from.
        codecs: topic name to layout.

    Attributes:
        targets: every target.
        pairs: (row of the target, row of its input, whether another pilot process began with it).
        lost: targets whose input the log lacks.

    Raises:
        UserError: no policy answered, or another version wrote the log.
    """

    def __init__(self, log: Log, codecs: dict[str, Any]) -> None:
        self.targets = Rows(log, "target", codecs["target"])
        self.inputs = Rows(log, "policy_input", codecs["policy_input"])
        self.maps = Maps(log, codecs["height_map"])
        if not len(self.targets) or not len(self.inputs):
            raise UserError(f"{log.path}: no policy ran; this level needs policy_input and target")
        where = {
            name: row
            for row, name in enumerate(zip(self.inputs.instances, self.inputs.seqs, strict=True))
        }
        records = self.targets.records
        asked = zip(records["input_instance"].tolist(), records["input_seq"].tolist(), strict=True)
        rows = [where.get(name, -1) for name in asked]
        instances = self.targets.instances
        self.pairs = [
            (target, given, target > 0 and instances[target] != instances[target - 1])
            for target, given in enumerate(rows)
            if given >= 0
        ]
        self.lost = rows.count(-1)

    def ask(
        self, pilot: Pilot, until_ns: int = 1 << 62, after: int = -1
    ) -> Iterator[tuple[int, int]]:
        """Let a pilot answer the inputs up to a time; yields rows of target and input.

        Args:
            pilot: answers.
            until_ns: the last time of an input.
            after: go on behind this row of the targets.
        """
        given: PolicyInput = self.inputs.codec.new()
        for target, row, restarted in self.pairs:
            if target <= after:
                continue
            if restarted:
                pilot.forget()
            self.inputs.fill(given, row)
            if given.now_ns > until_ns:
                return
            self.maps.show_newest(pilot, given.now_ns)
            pilot.step(given, given.now_ns)
            yield target, row


def shadow(log: Log, folder: Path, policy: Path) -> dict[str, Any]:
    """Level R5: what would another policy have said?

    Args:
        log: of a run with a policy.
        folder: scratch, for what the log has attached.
        policy: the other policy file.

    Returns:
        Disagreement in rad by mode and joint, `series` over time, worst moments, `notes`.

    Raises:
        UserError: no policy moved the robot, or the file does not fit the robot.
    """
    run, robot = setup_of(log, folder)
    pilot = load_pilot(run.model_copy(update={"policy": policy}), robot)
    answers = Answers(log, make_codecs(robot))
    records, inputs = answers.targets.records, answers.inputs.records
    logged, got, given = [], [], []
    for target, row in answers.ask(pilot):
        logged.append(records["joint_pos_target"][target])
        got.append(pilot.target.joint_pos_target.copy())
        given.append(row)
    modes = inputs["mode"][given]
    walking = np.isin(modes, [int(mode) for mode in WALKING])
    if not walking.any():
        names = ", ".join(Mode(int(m)).name for m in np.unique(modes))
        raise UserError(f"{log.path}: no policy moved the robot; its modes were {names}")
    difference = np.array(got) - np.array(logged)  # (n, N) rad
    offset_ns = int(log.metadata.get("clock_offset_ns", 0)) - log.start_ns
    times = (inputs["stamp_ns"][given] + offset_ns) * 1e-9
    beyond = walking & (np.abs(difference).max(axis=1) > NOTICEABLE)
    by_mode = {"POLICY and HOLD": walking} | {
        Mode(int(m)).name: modes == m for m in np.unique(modes)
    }
    result: dict[str, Any] = {
        "level": "R5", "log": str(log.path), "verdict": "done", "policy": str(policy),
        "same_policy": bool((records["policy_id"] == pilot.policy_id).all()),
        "logged_policies": len(np.unique(records["policy_id"])),
        "joint_names": list(robot.joint_names), "steps": len(given), "lost_inputs": answers.lost,
        "noticeable_rad": NOTICEABLE,
        "first_noticeable_s": float(times[beyond.argmax()]) if beyond.any() else None,
        "modes": {name: figures(difference[rows]) for name, rows in by_mode.items()},
        "worst": worst_moments(times[walking], difference[walking], robot.joint_names),
        "series": {
            "times_s": times.tolist(),
            "modes": [Mode(int(m)).name for m in modes],
            "rms": np.sqrt(np.mean(difference**2, axis=1)).tolist(),
            "max": np.abs(difference).max(axis=1).tolist(),
        },
    }  # fmt: skip
    gains = records[["stiffness", "damping"]][answers.pairs[-1][0]]
    same_gains = all(
        np.array_equal(getattr(pilot.target, name), gains[name])
        for name in ("stiffness", "damping")
    )
    notes = [] if same_gains else ["its gains differ from the logged policy's: equal targets would "
                                   "be other torques"]  # fmt: skip
    result["notes"] = [*_notes(result), *notes, *other_machine(log), *log.damage]
    return result


def figures(difference: NDArray[np.float64]) -> dict[str, Any]:
    """(n, N) rad to figures per joint and over all joints."""
    size = np.abs(difference)
    return {
        "steps": len(difference),
        "rmse": np.sqrt(np.mean(size**2, axis=0)).tolist(),
        "max": size.max(axis=0).tolist(),
        "noticeable_share": (size > NOTICEABLE).mean(axis=0).tolist(),
        "rmse_all": float(np.sqrt(np.mean(size**2))),
        "max_all": float(size.max()),
        "noticeable_share_all": float((size > NOTICEABLE).any(axis=1).mean()),
    }


def worst_moments(
    times_s: NDArray[np.float64], difference: NDArray[np.float64], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The largest disagreements, at least APART_S from each other; none where there is none."""
    size = np.abs(difference)
    worst: list[dict[str, Any]] = []
    for row in np.argsort(-size.max(axis=1), kind="stable"):
        if len(worst) == WORST or size[row].max() == 0.0:
            break
        if all(abs(times_s[row] - other["time_s"]) >= APART_S for other in worst):
            joint = int(size[row].argmax())
            worst.append({
                "time_s": float(times_s[row]), "joint": names[joint],
                "difference_rad": float(difference[row, joint]),
            })  # fmt: skip
    return worst


def _notes(result: dict[str, Any]) -> Iterator[str]:
    figure = result["modes"]["POLICY and HOLD"]
    if result["same_policy"]:
        yield "this is the policy that was logged"
    if (several := result["logged_policies"]) > 1:
        yield f"{several} policies answered in this log, each for a while: it is held against all"
    if figure["max_all"] == 0.0:
        yield f"it agrees with the log in all {figure['steps']} steps to the last bit"
        return
    yield (
        f"over {figure['steps']} steps targets differ by {figure['rmse_all']:.3g} rad (RMS), at "
        f"most {figure['max_all']:.3g}; in {figure['noticeable_share_all']:.0%} of the steps some "
        f"joint differs by more than {NOTICEABLE:g} rad"
    )
    if (first := result["first_noticeable_s"]) is not None:
        yield f"from {first:.2f} s on the robot would have gone elsewhere: read later figures so"
    if result["lost_inputs"]:
        yield f"{result['lost_inputs']} answers left out: the log lacks their policy_input"
    for moment in result["worst"][:3]:
        yield (
            f"{moment['time_s']:.2f} s: {moment['joint']} {moment['difference_rad']:+.3g} rad "
            "from the log"
        )
