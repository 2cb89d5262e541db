"""Puts what a stage remembers into a `Snapshot` message, and back.

A stage lists its memory as data: objects with the names of their numbers, and arrays as bytes. A
snapshot of another list is refused, never half understood.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot.config import UserError
from robot.messages import SNAPSHOT_BYTES, Message, Snapshot, hash64


@dataclass(frozen=True)
class Memory:
    """What a stage remembers between two steps.

    Attributes:
        plain: objects and the names of their attributes that JSON can hold exactly.
        blocks: flat uint8 views of its arrays and messages, in a fixed order.
    """

    plain: tuple[tuple[Any, tuple[str, ...]], ...]
    blocks: tuple[NDArray[np.uint8], ...]

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(len(block) for block in self.blocks)

    @property
    def layout(self) -> int:
        """The same for memories that fit each other."""
        return hash64(f"{[names for _, names in self.plain]} {[len(b) for b in self.blocks]}")


def as_bytes(thing: Message | NDArray[Any] | bytearray) -> NDArray[np.uint8]:
    """The body of a message, or a contiguous array, as a flat uint8 view."""
    if isinstance(thing, Message):
        return thing.buffer[8:]
    if isinstance(thing, bytearray):
        return np.frombuffer(thing, np.uint8)
    return thing.reshape(-1).view(np.uint8)


def fits(memory: Memory) -> bool:
    """True if a snapshot can hold it; a policy may carry more than that."""
    return memory.size <= SNAPSHOT_BYTES


def save(memory: Memory, out: Snapshot, now_ns: int, step: int) -> None:
    """Fill `out` with the memory after a step."""
    values = [[getattr(thing, name) for name in names] for thing, names in memory.plain]
    out.set_scalars(now_ns, step, memory.size)
    out.plain = json.dumps([memory.layout, values], separators=(",", ":"))
    if memory.blocks:
        np.concatenate(memory.blocks, out=out.block[: memory.size])


def restore(memory: Memory, snapshot: Snapshot, where: str) -> None:
    """Overwrite the stage's memory with what `save` wrote.

    Args:
        memory: of the stage that shall go on from there.
        where: names the snapshot in the error.

    Raises:
        UserError: it was written by another version of the stage.
    """
    try:
        layout, values = json.loads(snapshot.plain)
    except ValueError:
        layout, values = None, []
    if layout != memory.layout or snapshot.size != memory.size:
        raise UserError(
            f"{where}: a snapshot of another version of this stage; replay from the log's start"
        )
    for (thing, names), row in zip(memory.plain, values, strict=True):
        for name, value in zip(names, row, strict=True):
            setattr(thing, name, value)
    at = 0
    for block in memory.blocks:
        block[:] = snapshot.block[at : at + len(block)]
        at += len(block)
