"""Lends runs and policies over HTTP: to who is in, a few at a time, and no longer than they read.

Logs are read in threads, never in the event loop. Who goes away, or takes nothing for STALL_S, ends
the reading.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from robot.config import UserError
from robot.console.library import Library
from robot.console.policies import policy_lines

MAX_READERS = 3  # threads that read; each costs the loop a share of Python's lock
STALL_S = 20.0
LINES, FLOATS, TAR = "application/x-ndjson", "application/octet-stream", "application/x-tar"


class Shelf:
    """Routes of the library, and of what policies there are.

    Args:
        library: what is lent.
        directory: the run's, where its configuration lies.
        is_in: tells whether a request comes from a visitor.
        headers: of every answer.
    """

    def __init__(
        self,
        library: Library,
        directory: Path,
        is_in: Callable[[Request], bool],
        headers: dict[str, str],
    ) -> None:
        self.library, self._directory = library, directory
        self._is_in, self._headers = is_in, headers
        self.readers = 0
        self.routes = [
            Route("/runs", self._rows), Route("/runs/{run}", self._facts),
            Route("/runs/{run}/archive", self._archive),
            Route("/runs/{run}/frames/{window:int}", self._frames),
            Route("/policies", self._policies),
        ]  # fmt: skip

    async def _rows(self, request: Request) -> Response:
        return await self._lend(request, self.library.rows, LINES)

    async def _facts(self, request: Request) -> Response:
        run = request.path_params["run"]
        return await self._lend(request, lambda: self.library.facts(run), LINES)

    async def _frames(self, request: Request) -> Response:
        run, window = request.path_params["run"], request.path_params["window"]
        return await self._lend(request, lambda: self.library.frames(run, window), FLOATS)

    async def _policies(self, request: Request) -> Response:
        return await self._lend(request, lambda: policy_lines(self._directory), LINES)

    async def _archive(self, request: Request) -> Response:
        run = request.path_params["run"]
        answer = await self._lend(request, lambda: self.library.archive(run), TAR)
        if isinstance(answer, Stream):
            with suppress(UserError):  # deleted since: the browser names the file
                name = await run_in_threadpool(self.library.name, run)
                answer.headers["Content-Disposition"] = f'attachment; filename="{name}.tar"'
        return answer

    async def _lend(
        self, request: Request, make: Callable[[], Generator[bytes]], kind: str
    ) -> Response:
        """Stream what `make` yields; its first piece decides whether there is an answer."""
        if not self._is_in(request):
            return PlainTextResponse("not here\n", 404, self._headers)
        if self.readers >= MAX_READERS:
            return PlainTextResponse("others are reading; try again\n", 503, self._headers)
        self.readers += 1
        pieces = make()
        try:
            first = await run_in_threadpool(next, pieces, b"")
        except BaseException as error:
            self._returned()
            if isinstance(error, UserError):
                return PlainTextResponse(f"{error}\n", 404, self._headers)
            raise
        return Stream(first, pieces, self._returned, headers=self._headers, media_type=kind)

    def _returned(self) -> None:
        self.readers -= 1


class Stream(StreamingResponse):
    """A response whose pieces are made in threads; says when it ended, however it did.

    Args:
        first: its first piece.
        pieces: the others; closed at the end.
        done: called at the end.
        options: those of StreamingResponse.
    """

    def __init__(
        self, first: bytes, pieces: Generator[bytes], done: Callable[[], None], **options: Any
    ) -> None:
        super().__init__(itertools.chain((first,), pieces), **options)
        self._pieces, self._done = pieces, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, piece by piece."""

        async def send_or_give_up(message: Message) -> None:
            async with asyncio.timeout(STALL_S):
                await send(message)

        try:
            await super().__call__(scope, receive, send_or_give_up)
        except (TimeoutError, ClientDisconnect):
            pass  # the connection is closed with the answer unfinished
        finally:
            self._pieces.close()
            self._done()
