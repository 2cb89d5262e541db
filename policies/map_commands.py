"""The command `plexus eval map`: judges what perception makes of the ground, and shows it."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

WORD = Path("map")  # in place of a policy file
WALKS, WALK_S = 2, 12.0  # over each family and camera, where no number is asked for; s of each
WALK_QUICK_S = 1.5  # s; the first of them does not count


def eval_map(
    net: Path | None, seeds: int, seconds: float, jobs: int,
    json_path: Path | None, report: Path | None,
) -> int:  # fmt: skip
    """Judge the untrained map and, if there is one, TerrainNet beside it.

    Args:
        net: a network's file; None: the untrained map alone.
        seeds: walks over each family and camera.
        seconds: length of each.
        jobs: processes.
        json_path: where the figures go.
        report: folder for report.md and maps.png.
    """
    from policies.map_eval import (
        Method,
        about,
        draw,
        evaluate,
        geomap,
        lines,
        markdown,
        of_net,
        verdict,
    )
    from robot.model import load_robot
    from robot.terrain_net import load_net
    from robot.topics import CAMERA

    methods: dict[str, Method] = {"geomap": geomap}
    if net is not None:
        calibration = load_robot("g1").cameras[CAMERA]
        scale = calibration.file.depth_scale_m
        methods["terrainnet"] = of_net(load_net(net, calibration), scale)
    console = Console(stderr=True)
    found, examples = evaluate(
        methods, seeds, seconds, jobs,
        lambda done, of: console.print(f"walk {done} of {of}", end="\r"),
    )  # fmt: skip
    text = lines(found)
    grid = Grid(*text[0], caption=about(found))
    for line in text[1:]:
        grid.add_row(*line)
    Console().print(grid)
    sentences = []
    for name in list(methods)[1:]:
        good, told = verdict(found, name)
        sentences += [f"{name} {'beats' if good else 'does not beat'} geomap as it must:", *told]
    print("\n".join(sentences))
    if json_path:
        json_path.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    if report:
        report.mkdir(parents=True, exist_ok=True)
        (report / "report.md").write_text(markdown(found, sentences), encoding="utf-8")
        print(report / "report.md")
        print(draw(report / "maps.png", examples))
    return 0
