"""YAML mistakes: each is one sentence with file, line, key, what was got, expected, available."""

# ruff: noqa: E501 - sentences stand on one line, as they are printed

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from robot.config import Strict, UserError, check, listing, load_yaml, read_text, short


class Motor(Strict):
    effort: float = Field(gt=0.0)


class Example(Strict):
    name: str
    count: int = Field(default=3, ge=1, le=9)
    gain: float = 1.0
    pair: tuple[float, float] = (0.0, 0.0)
    live: bool = False
    motor: Motor = Motor(effort=1.0)
    motors: dict[str, Motor] = Field(default={})
    rows: list[Motor] = Field(default=[])


KEYS = "name, count, gain, pair, live, motor, motors, rows"


def load(folder: Path, text: str | bytes, **overrides: object) -> Example:
    path = folder / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_yaml(path, Example, {k.replace("__", "."): v for k, v in overrides.items()})


def said(folder: Path, text: str | bytes, **overrides: object) -> str:
    """The sentence that this text earns, with the folder cut off."""
    with pytest.raises(UserError) as error:
        load(folder, text, **overrides)
    return str(error.value).replace(f"{folder}/", "")


def test_a_good_file_fits_with_defaults_for_what_is_missing(tmp_path):
    got = load(tmp_path, "name: x\npair: [1, 2.5]\nmotors: {a: {effort: 3}}\n")
    assert got == Example(name="x", pair=(1.0, 2.5), motors={"a": Motor(effort=3.0)})


NOT_A_NUMBER = " (YAML reads this as text; a number has no quotes, and 1e-3 is written 1.0e-3)"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        # Unknown keys, with a near match where there is one; the line is the key's.
        ("name: x\ncuont: 3\n", f"a.yaml:2: cuont: unknown key (did you mean 'count'?); available: {KEYS}"),
        ("name: x\n\nzebra: 3\n", f"a.yaml:3: zebra: unknown key; available: {KEYS}"),
        ("name: x\nmotor:\n  effort: 1\n  efort: 1\n",
         "a.yaml:4: motor.efort: unknown key (did you mean 'effort'?); available: effort"),
        ("name: x\nmotors:\n  a: {effort: 1}\n  b: {effort: 1, x: 2}\n",
         "a.yaml:4: motors.b.x: unknown key; available: effort"),
        # Doubled keys, also inside.
        ("name: x\ngain: 1\ngain: 2\n", "a.yaml:3: key 'gain' is given twice"),
        ("name: x\nmotor: {effort: 1, effort: 2}\n", "a.yaml:2: key 'effort' is given twice"),
        # Wrong types: nothing is converted.
        ("name: 3\n", "a.yaml:1: name: got 3, expected a valid string"),
        ("name: x\ncount: '3'\n", f"a.yaml:2: count: got '3', expected a valid integer{NOT_A_NUMBER}"),
        ("name: x\ncount: 2.5\n", "a.yaml:2: count: got 2.5, expected a valid integer"),
        ("name: x\ncount: true\n", "a.yaml:2: count: got True, expected a valid integer"),
        ("name: x\ngain: 1e-3\n", f"a.yaml:2: gain: got '1e-3', expected a valid number{NOT_A_NUMBER}"),
        ("name: x\ngain: 5 rad/s\n", "a.yaml:2: gain: got '5 rad/s', expected a valid number"),
        ("name: x\nlive: 1\n", "a.yaml:2: live: got 1, expected a valid boolean"),
        ("name: x\nmotor: [1]\n", "a.yaml:2: motor: got [1], expected a mapping"),
        ("name: x\nrows: 3\n", "a.yaml:2: rows: got 3, expected a valid list"),
        ("name: x\npair: [1, a]\n", "a.yaml:2: pair.1: got 'a', expected a valid number"),
        # Numbers that are none.
        ("name: x\ngain: .nan\n", "a.yaml:2: gain: got nan, expected a finite number"),
        ("name: x\ngain: -.inf\n", "a.yaml:2: gain: got -inf, expected a finite number"),
        # Missing, out of range.
        ("count: 3\n", "a.yaml:1: name: missing; expected a value here"),
        ("name: x\nrows:\n- {effort: 1}\n- {}\n", "a.yaml:4: rows.1.effort: missing; expected a value here"),
        ("name: x\ncount: 10\n", "a.yaml:2: count: got 10, expected less than or equal to 9"),
        ("name: x\nmotor:\n  effort: -1\n", "a.yaml:3: motor.effort: got -1, expected greater than 0"),
        ("", "a.yaml: name: missing; expected a value here"),
        ("# nothing\n", "a.yaml: name: missing; expected a value here"),
        # No YAML, or not what a configuration is.
        ("name: [x\n", "a.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("name: x\n\tcount: 3\n", "a.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("name: x\n---\nname: y\n", "a.yaml:2: not valid YAML: but found another document"),
        ("a\0b", "a.yaml: not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("- name\n", "a.yaml: got a list, expected a mapping of keys"),
        ("just words\n", "a.yaml: got a str, expected a mapping of keys"),
        ("name: x\n3: y\n", "a.yaml:2: key 3: expected text"),
        ("name: x\n[a, b]: y\n", "a.yaml:2: key ['a', 'b']: expected text"),
        ("name: 2024-99-99\n", "a.yaml:1: not valid YAML: 'month must be in 1..12'"),
        ("name: x\nrows: &r [*r]\n", "a.yaml: nested too deeply, or an alias that contains itself"),
        ("name: " + "[" * 1000, "a.yaml: nested too deeply, or an alias that contains itself"),
        ("name: x\nmotor: !!python/object:os.x {}\n",
         "a.yaml:2: not valid YAML: could not determine a constructor for the tag "
         "'tag:yaml.org,2002:python/object:os.x'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(tmp_path, text: str, sentence: str):
    assert said(tmp_path, text) == sentence


def test_binary_content_is_refused(tmp_path):
    got = said(tmp_path, b"\x7fELF\xff\xfe\x00")
    assert got.startswith("a.yaml: cannot be read as text: 'utf-8' codec can't decode byte 0xff")


def test_a_folder_is_not_a_file(tmp_path):
    (tmp_path / "b.yaml").mkdir()
    with pytest.raises(UserError, match=r"b\.yaml: not a regular file$"):
        read_text(tmp_path / "b.yaml")


def test_a_device_is_not_a_file():
    with pytest.raises(UserError, match=r"^/dev/null: not a regular file$"):
        read_text(Path("/dev/null"))


def test_a_missing_file_says_what_is_there(tmp_path):
    for name in ("b.yaml", "a.yaml", "c.txt"):
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"x\.yaml: no such file; available there: a\.yaml, b\.yaml$"
    ):
        read_text(tmp_path / "x.yaml")
    with pytest.raises(UserError, match=r"no such file; available there: nothing$"):
        read_text(tmp_path / "nowhere" / "x.yaml")


def test_overrides_replace_the_file_and_take_the_blame(tmp_path):
    text = "name: x\ncount: 4\nmotor: {effort: 2}\n"
    got = load(tmp_path, text, count=5, motor__effort=7.5)
    assert (got.count, got.motor.effort, got.name) == (5, 7.5, "x")
    assert said(tmp_path, text, count=0) == (
        "command line: count: got 0, expected greater than or equal to 1"
    )
    assert said(tmp_path, text, motor__effort=-1.0) == (
        "command line: motor.effort: got -1.0, expected greater than 0"
    )


def test_an_override_of_a_part_hides_no_mistake_of_the_file(tmp_path):
    assert load(tmp_path, "name: x\nmotor:\n", motor__effort=2.0).motor.effort == 2.0
    assert said(tmp_path, "name: x\nmotor: [1]\n", motor__effort=2.0) == (
        "a.yaml:2: motor: got [1], expected a mapping"
    )


def test_records_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Example(name="x").gain = 2.0  # pyright: ignore[reportAttributeAccessIssue]


def test_check_names_the_place_it_is_given():
    with pytest.raises(UserError, match=r"^here: count: got 'a', expected a valid integer$"):
        check({"name": "x", "count": "a"}, Example, where="here")


def test_lists_and_values_are_cut():
    assert listing([]) == "nothing"
    assert listing(["a", "b"]) == "a, b"
    assert listing("abcde", most=3) == "a, b, c and 2 more"
    assert short("x" * 100) == "'" + "x" * 56 + "..."
    assert short(3) == "3"
