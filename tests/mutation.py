"""Tests the tests: plants one fault at a time in the safety filter and the mode machine.

Each mutant runs the tests of its module in a forked child; a mutant that no test notices survives
and has to be in ACCEPTED, with the reason. `make acceptance` runs it: python tests/mutation.py
"""

from __future__ import annotations

import ast
import copy
import gc
import importlib
import os
import signal
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Imported once, before the children are forked; none of these may import a mutated module.
PRELOADED = ("hypothesis.stateful", "mujoco", "numpy", "pydantic", "pytest", "robot.model",
             "robot.topics")  # fmt: skip
ROOT = Path(__file__).parents[1]
TARGETS = {"robot.safety": "tests/test_safety.py", "robot.modes": "tests/test_modes.py"}
SECONDS = 60  # a mutant that runs longer is noticed

# (source line, what was done to it, why no test can or need notice)
ACCEPTED: tuple[tuple[str, str, str], ...] = (
    ("return abs(math.sqrt(w * w + x * x + y * y + z * z) - 1.0) <= QUAT_TOLERANCE", "LtE -> Lt",
     "no length differs from 1 by exactly 0.02 in binary"),
    ("return clip", "removed", "the full bound changes nothing where the quick test is sure"),
    ("if max(values.max(), -values.min()) > most:", "Gt -> GtE",
     "cutting at the bound does nothing"),
    ("return None", "removed", "the last statement returns None anyway"),
    ("self._inverse_twice = np.concatenate([self._inverse_effort, [0.0], self._inverse_effort])",
     "0.0 -> 1.0", "what lies between the two halves is never added to anything"),
    ("self._above, self._below = np.frombuffer(self._flags, np.bool_).reshape(2, -1)", "1 -> 3",
     "any negative number means the same to reshape"),
    ("return bool(share.dot(share) < 1.0)", "Lt -> LtE",
     "at equality the full bound gives the same"),
    ("if math.isnan(self.previous[0]):", "0 -> 1", "all joints are unset together"),
    ("at_limit = bool(self.room[worst + (0 if rest[worst] < 0.0 else n)] < 1.0)", "Add -> Sub",
     "of 2N rows, row worst - N from the end is row worst + N"),
    ("at_limit = bool(self.room[worst + (0 if rest[worst] < 0.0 else n)] < 1.0)", "Lt -> LtE",
     "the worst change is never 0"),
    ("return 0.0  # a ring of zeros has no position", "removed", "it only saves work"),
    ("self.at = (self.at + 1) % len(self.ring)", "Add -> Sub", "a ring has no direction"),
    ("tilt = math.acos(max(-1.0, min(1.0, 1.0 - 2.0 * (x * x + y * y))))", "1.0 -> 3.0",
     "a sum of squares is not negative, so the upper bound is never needed"),
)  # fmt: skip

COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Mod: ast.FloorDiv,
}  # fmt: skip
CALLS = {
    "add": "subtract", "subtract": "add", "multiply": "divide", "divide": "multiply",
    "minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min", "any": "all",
    "all": "any", "argmax": "argmin", "abs": "positive",
}  # fmt: skip


def edits(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """Each way to spoil this node: what is done, and the new node (None: removed)."""
    match node:
        case ast.Compare(ops=[op]):
            for new in COMPARE.get(type(op), ()):
                yield f"{type(op).__name__} -> {new.__name__}", _with(node, ops=[new()])
        case ast.BoolOp(op=op):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield f"{type(op).__name__} -> {type(other).__name__}", _with(node, op=other)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield f"{type(node.op).__name__} dropped", operand
        case ast.BinOp(op=op) if new := ARITHMETIC.get(type(op)):
            yield f"{type(op).__name__} -> {new.__name__}", _with(node, op=new())
        case ast.Constant(value=bool(value)):
            yield f"{value} -> {not value}", ast.Constant(not value)
        case ast.Constant(value=int(value)) | ast.Constant(value=float(value)):
            yield f"{value} -> {2 * value + 1}", ast.Constant(2 * value + 1)
        case ast.Attribute(attr=name) if name in CALLS:
            yield f"{name} -> {CALLS[name]}", _with(node, attr=CALLS[name])
        case ast.Name(id=name) if name in ("min", "max"):
            yield f"{name} -> {CALLS[name]}", _with(node, id=CALLS[name])
        case ast.Assign() | ast.AugAssign() | ast.Return(value=ast.expr()):
            yield "removed", None
        case ast.Expr(value=ast.Call()):
            yield "removed", None


def _with(node: ast.AST, **changes: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in changes.items():
        setattr(new, name, value)
    return new


class Spoiler(ast.NodeTransformer):
    """Applies edit number `wanted`, counted over the whole module; -1: only lists them."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.found = wanted, []  # (line number, what was done)

    def visit(self, node: ast.AST) -> ast.AST:
        """Spoil this node or go on into its children."""
        for label, new in edits(node):
            self.found.append((getattr(node, "lineno", 0), label))
            if len(self.found) - 1 == self.wanted:
                return ast.copy_location(new or ast.Pass(), node)
        if isinstance(node, ast.AnnAssign):  # the annotation is no code
            node.value = self.visit(node.value) if node.value else None  # type: ignore[assignment]
            return node
        if isinstance(node, ast.FunctionDef):
            node.body = [self.visit(child) for child in node.body]  # type: ignore[misc]
            node.args.defaults = [self.visit(d) for d in node.args.defaults]  # type: ignore[misc]
            return node
        return self.generic_visit(node)


def survives(name: str, source: str, number: int) -> bool:
    """True if the module's tests pass with this edit (-1: none); they run in a forked child."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    code = 1
    try:
        signal.alarm(SECONDS)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        tree = ast.parse(source)
        Spoiler(number).visit(tree)
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(compile(ast.fix_missing_locations(tree), f"{name} mutated", "exec"), module.__dict__)
        setattr(importlib.import_module("robot"), name.rpartition(".")[2], module)
        import pytest

        options = ["-x", "--tb=no", "--assert=plain", "--noconftest", "-p", "no:cacheprovider"]
        code = int(pytest.main([*options, TARGETS[name]]))
    finally:
        os._exit(code)


def main() -> int:
    """Run all mutants, two at a time; 1 if one survives that is not accepted."""
    for module in PRELOADED:
        importlib.import_module(module)
    os.chdir(ROOT)
    gc.freeze()  # else each child copies what its collector touches
    accepted = {(line, label) for line, label, _ in ACCEPTED}
    seen: set[tuple[str, str]] = set()
    unexplained = 0
    names = sys.argv[1:] or list(TARGETS)
    for name in names:
        assert name not in sys.modules, f"{name} is imported already, children would share it"
        source = (ROOT / f"{name.replace('.', '/')}.py").read_text()
        assert survives(name, source, -1), f"{TARGETS[name]} fails without a mutant"
        census = Spoiler(-1)
        census.visit(ast.parse(source))
        left = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            numbers = range(len(census.found))
            alive = pool.map(lambda i, n=name, s=source: survives(n, s, i), numbers)
            for (at, label), lives in zip(census.found, alive, strict=True):
                line = source.splitlines()[at - 1].strip()
                left += lives
                if lives:
                    seen.add((line, label))
                if lives and (line, label) not in accepted:
                    unexplained += 1
                    print(f"{name} SURVIVES: {label}: {line}", flush=True)
        print(f"{name}: {len(census.found)} mutants, {left} survive")
    unneeded = accepted - seen if len(names) == len(TARGETS) else set()
    for line, label in sorted(unneeded):
        print(f"ACCEPTED lists what no longer survives: {label}: {line}")
    return 1 if unexplained or unneeded else 0


if __name__ == "__main__":
    sys.exit(main())
