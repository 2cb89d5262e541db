"""The README is a map: its tree, tables and commands are held against the code."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from robot.calibration_formats import export_calibration
from robot.cli import main
from robot.model import load_robot
from robot.nodes import NODES
from robot.topics import TOPICS
from tests.conftest import processes_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FOLDERS = ("robot", "policies", "drivers", "sim2real", "configs", "tests", ".ci")


def tracked() -> list[Path]:
    out = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if out.returncode != 0:
        pytest.skip("not a git checkout: the list of tracked files is not to be had")
    return [Path(line) for line in out.stdout.splitlines() if (ROOT / line).exists()]


def first_sentence(path: Path) -> str:
    """Of a module: its docstring's; of another file: its first comment line."""
    text = (ROOT / path).read_text()
    if path.suffix == ".py":
        doc = ast.get_docstring(ast.parse(text)) or ""
        return " ".join(doc.split("\n\n")[0].split())
    comment = re.search(r"(?:#|<!--)\s*([A-Z][^\n]*)", text)
    return comment.group(1).removesuffix("-->").strip() if comment else ""


def tree_entries() -> dict[str, str]:
    """Path to remark, from the annotated tree."""
    block = README.split("## Where things are")[1].split("```")[1].strip("\n")
    entries: dict[str, str] = {}
    folder = ""
    for line in block.splitlines():
        name, _, remark = line.strip().partition("  ")
        if line.startswith("  "):
            entries[f"{folder}{name}"] = remark.strip()
        elif name.endswith("/"):
            folder = name
            entries[name] = remark.strip()
        else:
            entries[name] = remark.strip()
    return entries


def test_every_tracked_file_is_in_the_tree_and_every_entry_exists():
    entries = tree_entries()
    files = {str(p) for p in tracked() if not is_detail(p)}
    in_tree = {name for name in entries if not name.endswith("/")}
    assert files - in_tree == set(), "not in the README's tree"
    assert in_tree - files == set(), "in the README's tree but not in the repository"
    assert all((ROOT / name).is_dir() for name in entries if name.endswith("/"))


def is_detail(path: Path) -> bool:
    """Empty package markers and test data need no line of their own."""
    marker = path.name == "__init__.py" and not (ROOT / path).read_text().strip()
    return marker or (path.parts[0] == "tests" and len(path.parts) > 2)


@pytest.mark.parametrize("path", [p for p in tracked() if p.suffix == ".py"], ids=str)
def test_a_module_opens_with_one_sentence_and_the_tree_repeats_it(path: Path):
    if is_detail(path):
        return
    sentence = first_sentence(path)
    assert sentence, f"{path} does not say what it is"
    remark = tree_entries().get(str(path), "")
    assert sentence.startswith(remark.rstrip(".")) and remark, f"{path}: the tree says {remark!r}"


def table_under(heading: str) -> list[list[str]]:
    section = README.split(f"### {heading}\n")[1].split("\n#")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


def test_topic_table_is_the_code():
    rows = [
        [f"`{t.name}`", t.message.__name__, t.rate, t.publisher, "yes" if t.logged else "no"]
        for t in TOPICS
    ]
    assert table_under("Topics") == rows


def test_node_table_is_the_code():
    rows = [[n.name, f"`{n.entry}`", n.when_text, n.priority, n.restart] for n in NODES]
    assert table_under("Nodes") == rows


COMMANDS = sorted(set(re.findall(r"^\| `plexus ([^`]+)` \|", README, re.M)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_shown_exists(command: str, capsys: pytest.CaptureFixture[str]):
    words = command.split()
    sub = words[: 2 if words[0] in ("policy", "log", "camera") else 1]
    with pytest.raises(SystemExit) as ended:
        main([*sub, "--help"])
    shown = capsys.readouterr()
    assert not ended.value.code, shown.err
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.out, f"{option} is not an option of plexus {' '.join(sub)}"


RUNNABLE = {
    "run", "nodes", "topics", "policy", "log", "replay", "eval", "emulate", "doctor", "camera"
}  # fmt: skip
SHOWN = [command for command in COMMANDS if command.split()[0] in RUNNABLE]


@pytest.mark.parametrize("command", SHOWN)
def test_every_command_shown_runs(
    command: str, tmp_path: Path, runtime_dir: Path, log_dir: Path, standing_policy: Path
):
    """Short forms: a few seconds, no window; files in a folder of the test, with a log at hand."""
    log = log_dir / "20261124T033000Z-sim-1a2b"
    shutil.copytree(ROOT / "tests" / "data" / "logs" / "walk", log)
    words = command.replace("--seconds 60", "").replace("--seconds 20", "").split()
    file = standing_policy.with_name("theirs.onnx") if words[1:2] == ["import"] else standing_policy
    if words[0] == "camera":
        file = tmp_path / "camera_info.yaml"
        file.write_text(export_calibration(load_robot("g1").cameras["head"].file, "ros"))
    # A robot may be on this computer's network: no test ever speaks to it.
    places = {"FILE": str(file), "LOG": str(log), "KEY": str(tmp_path / "key"), "eth0": "lo"}
    places["OUT"] = str(tmp_path / "camera.yaml")
    given = [places.get(word, word) for word in words]
    if words[0] == "run":
        given += ["--seconds", "2"] + (["--headless"] if "--headless" not in words else [])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "robot.cli", *given], cwd=tmp_path, timeout=120,
            capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    finally:
        for pid in processes_of(runtime_dir):
            os.kill(pid, signal.SIGKILL)
    assert done.returncode in expected_codes(words), done.stderr
    assert "Traceback" not in done.stderr


def expected_codes(words: list[str]) -> tuple[int, ...]:
    """Without robot, emulator, trusted key or frames: one sentence, or a line that is not ok."""
    codes = {"g1": (1, 2), "g1-emulator": (2,), "verify": (2,), "host": (0, 1), "label": (2,)}
    told = words[0] in ("run", "doctor", "policy", "log")
    return codes.get(words[1], (0,)) if told and len(words) > 1 else (0,)


def test_the_two_commands_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_nothing_names_a_private_place():
    """No home directories or build hosts in what we ship."""
    for path in tracked():
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".xml", ""}:
            text = (ROOT / path).read_text(errors="replace")
            assert not re.search(r"/(work|home)/[a-z]+/(main|shared)", text), path


def test_packages_on_disk_are_those_that_are_shipped():
    toml = (ROOT / "pyproject.toml").read_text()
    for folder in ("robot", "policies", "drivers", "sim2real", "configs"):
        assert f'"{folder}"' in toml
    assert all((ROOT / folder).is_dir() for folder in FOLDERS)
