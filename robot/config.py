"""Reads YAML strictly into typed records; an error names file, line, key, got and expected."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs"
COMMAND_LINE = 0  # the line of a value that no file holds


class UserError(Exception):
    """A mistake of the user, in one sentence: where, got, expected, available; no traceback."""


class Strict(BaseModel):
    """Base of every configuration record: frozen, unknown keys refused, no silent conversion.

    Ints are accepted where floats are expected; NaN and infinity are refused everywhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


ModelT = TypeVar("ModelT", bound=BaseModel)


def load_yaml(path: Path, model: type[ModelT], overrides: dict[str, Any] | None = None) -> ModelT:
    """Read a YAML file into `model`.

    Args:
        path: a regular file.
        model: the pydantic record that the file must fit.
        overrides: values of the command line in place of the file's; "sim.collisions" names a key
            of a key.

    Raises:
        UserError: missing file, broken YAML, doubled or unknown key, wrong type, unit or range.
    """
    data, lines = parse_yaml(read_text(path), path)
    for key, value in (overrides or {}).items():
        _override(data, lines, tuple(key.split(".")), value)
    return check(data, model, where=str(path), lines=lines)


def _override(data: Any, lines: dict[tuple, int], at: tuple[str, ...], value: Any) -> None:
    """Put `value` in; what the file has in its place is only refused by the model, never lost."""
    for part in at[:-1]:
        data[part] = data.get(part) or {}
        data = data[part]
        if not isinstance(data, dict):
            return
    data[at[-1]] = value
    lines[at] = COMMAND_LINE


def check(
    data: Any, model: type[ModelT], where: str, lines: dict[tuple, int] | None = None
) -> ModelT:
    """Validate plain data against `model`; the first mistake becomes one UserError."""
    try:
        # JSON mode: lists may fill tuples and strings enumerations, while types stay strict.
        return model.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise UserError(_explain(error, model, where, lines or {})) from None


def read_text(path: Path) -> str:
    """The text of a regular file, or a UserError that lists the files beside it."""
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob(f"*{path.suffix}")) if path.suffix else []
        raise UserError(f"{path}: no such file; available there: {listing(near)}")
    if not path.is_file():
        raise UserError(f"{path}: not a regular file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None


def parse_yaml(text: str, path: Path) -> tuple[dict[str, Any], dict[tuple, int]]:
    """Parse a YAML mapping; returns it with the line (from 1) of every key path."""
    lines: dict[tuple, int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = _construct(node, (), lines, path) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply, or an alias that contains itself") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: got a {type(data).__name__}, expected a mapping of keys")
    return data, lines


def _construct(node: yaml.Node, at: tuple, lines: dict[tuple, int], path: Path) -> Any:
    """Build plain data from a YAML node; unlike PyYAML it refuses doubled keys."""
    lines[at] = node.start_mark.line + 1
    if node.tag == "tag:yaml.org,2002:map":
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key, line = _scalar(key_node, path), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise UserError(f"{path}:{line}: key {short(key)}: expected text")
            if key in result:
                raise UserError(f"{path}:{line}: key {key!r} is given twice")
            result[key] = _construct(value_node, (*at, key), lines, path)
            lines[(*at, key)] = line
        return result
    if node.tag == "tag:yaml.org,2002:seq":
        return [_construct(n, (*at, i), lines, path) for i, n in enumerate(node.value)]
    return _scalar(node, path)


def _scalar(node: yaml.Node, path: Path) -> Any:
    """The value of a node; other tags than YAML's own are refused by the loader."""
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except ValueError as error:  # an impossible date, a number of thousands of digits
        line = node.start_mark.line + 1
        raise UserError(f"{path}:{line}: not valid YAML: {short(str(error))}") from None


def _explain(
    error: ValidationError, model: type[BaseModel], where: str, lines: dict[tuple, int]
) -> str:
    first = error.errors(include_url=False)[0]
    at = tuple(first["loc"])
    known = next((lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines), None)
    place = f"{where}:{known}" if known and at else where
    if known == COMMAND_LINE:
        place = "command line"
    key = ".".join(str(part) for part in at) or "(whole file)"
    got = first.get("input")
    match first["type"]:
        case "extra_forbidden":
            names = _keys_at(model, at[:-1])
            close = difflib.get_close_matches(str(at[-1]), names, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            return f"{place}: {key}: unknown key{hint}; available: {listing(names)}"
        case "missing":
            return f"{place}: {key}: missing; expected a value here"
        case "value_error":
            return f"{place}: {key}: {first.get('ctx', {}).get('error')}"
        case _:
            expected = first["msg"].replace("Input should be", "expected").strip()
            expected = expected.replace("an object", "a mapping").replace("array", "list")
            return f"{place}: {key}: got {short(got)}, {expected}{_hint(got)}"


def _hint(got: Any) -> str:
    """Why a text that looks like a number is none."""
    try:
        float(got if isinstance(got, str) else "")
    except ValueError:
        return ""
    return " (YAML reads this as text; a number has no quotes, and 1e-3 is written 1.0e-3)"


def _keys_at(model: type[BaseModel], at: tuple) -> list[str]:
    """Field names of the record that `at` leads to (indices and mapping keys are passed over)."""
    current: Any = model
    for part in at:
        fields = getattr(current, "model_fields", {})
        if part in fields:
            current = _record_in(fields[part].annotation) or current
    return list(getattr(current, "model_fields", {}))


def _record_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if found := _record_in(inner):
            return found
    return None


def short(value: Any, width: int = 60) -> str:
    """repr of a value, cut to `width` characters."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def listing(names: Iterable[str], most: int = 12) -> str:
    """'a, b, c and 5 more', or 'nothing'."""
    names = list(names)
    if not names:
        return "nothing"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def without_extra(error: ImportError, extra: str, who: str) -> UserError:
    """What to tell where a package of an extra is not installed."""
    return UserError(f"{error}; `pip install 'plexus[{extra}]'` brings what {who} needs")


def check_positive(**options: float | None) -> None:
    """Refuse options of the command line that are not above 0.

    Raises:
        UserError: names the option and what was got.
    """
    for name, value in options.items():
        if value is not None and not 0.0 < value < math.inf:
            raise UserError(f"--{name}: got {value:g}, expected more than 0")


def check_writable(*paths: Path | None) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        UserError: a folder is missing, the path is a folder, or it may not be written.
    """
    for path in paths:
        if path is None:
            continue
        folder = path.absolute().parent
        if not folder.is_dir():
            raise UserError(f"{path}: the folder {folder} does not exist")
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected a file")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise UserError(f"{path}: may not be written by this user")
