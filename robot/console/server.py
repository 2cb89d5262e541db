"""Serves the page, and one WebSocket per page; who may not come in is refused and logged.

What a page says goes to the `Desk`; what it is told waits in its `Line`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from robot.clock import now_ns
from robot.console.access import Access, Bucket, Visit, refusal
from robot.console.desk import Desk, Line, Page
from robot.console.library import Library
from robot.console.shelf import Shelf
from robot.console.wire import MAX_BYTES, parse

PAGE = Path(__file__).parent / "page"
FILES = {path.name: path for path in sorted(PAGE.iterdir()) if path.is_file()}
MAX_PAGES = 16
RATE, BURST = 150.0, 150  # messages per second of one page: three times what an honest one sends
MAX_MISTAKES = 10  # malformed messages of one page until it is cut off
POLICY_VIOLATION, TRY_LATER = 1008, 1013  # WebSocket close codes
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server:
    """The web application.

    Args:
        desk: the console behind it.
        access: tokens and cookies.
        hosts: Host headers that are ours.
        scheme: http or https.
        cookie: name of the cookie; cookies know no ports, so each console has its own.
        on_token: called after a token was used.
    """

    def __init__(
        self,
        desk: Desk,
        access: Access,
        hosts: frozenset[str],
        scheme: str,
        cookie: str,
        on_token: Callable[[], None],
    ) -> None:
        self.desk, self.access, self.cookie = desk, access, cookie
        self.secure = scheme == "https"
        self.on_token = on_token
        self.pages = 0
        library = Library(desk.node.config.log.folder, desk.node.robot)
        directory = desk.node.directory
        shelf = Shelf(library, directory, lambda asked: self._visit(asked) is not None, HEADERS)
        routes = [
            Route("/", self.index), Route("/stop", self.stop, methods=["POST"]),
            *shelf.routes,
            Route("/{name}", self.file), WebSocketRoute("/ws", self.talk),
        ]  # fmt: skip
        application = Starlette(routes=routes)
        application.router.redirect_slashes = False  # what is not a route is not here
        self.app: ASGIApp = Door(application, hosts, scheme, desk.refused)

    def _visit(self, connection: Request | WebSocket) -> Visit | None:
        return self.access.visit(connection.cookies.get(self.cookie), now_ns())

    async def index(self, request: Request) -> Response:
        """The page; with a good token also the cookie. The page takes the token off its address.

        Not a redirect: a browser that came from another site would not send the cookie along it.
        Tries are not limited: a token has 192 bits, and a limit lets strangers lock people out.
        """
        visit, token = self._visit(request), request.query_params.get("token")
        if token:
            cookie = self.access.redeem(token, now_ns())
            if cookie and self.access.visit(cookie, now_ns()):
                self.on_token()
                response = FileResponse(FILES["index.html"], headers=HEADERS)
                response.set_cookie(
                    self.cookie, cookie, max_age=12 * 3600, httponly=True, samesite="strict",
                    secure=self.secure,
                )  # fmt: skip
                return response
        if visit is None:
            self.desk.refused("a browser with a wrong token" if token else "one without a token")
            return PlainTextResponse(
                "This console opens with the address that the run shows; it counts once.\n"
                "In the run's terminal there is a fresh one, and `plexus console` prints it.\n",
                403, HEADERS,
            )  # fmt: skip
        return FileResponse(FILES["index.html"], headers=HEADERS)

    async def file(self, request: Request) -> Response:
        """A file of the page, by its name in the table; no path is made from what was asked."""
        path = FILES.get(request.path_params["name"])
        if path is None or self._visit(request) is None:
            return PlainTextResponse("not here\n", 404, HEADERS)
        return FileResponse(path, headers=HEADERS)

    async def stop(self, request: Request) -> Response:
        """The STOP's second way, which needs no WebSocket; every visitor has it."""
        visit = self._visit(request)
        if visit is None:
            self.desk.refused("a stop without a cookie")
            return PlainTextResponse("not here\n", 403, HEADERS)
        self.desk.stop(visit.name)
        return Response(None, 204, HEADERS)

    async def talk(self, socket: WebSocket) -> None:
        """One page, from its opening to its end."""
        visit = self._visit(socket)
        if visit is None:
            self.desk.refused("a WebSocket without a cookie")
            await socket.close(POLICY_VIOLATION)  # before accepting: answered with 403
            return
        if self.pages >= MAX_PAGES:
            self.desk.refused(f"a page beyond {MAX_PAGES}")
            await socket.close(TRY_LATER)
            return
        self.pages += 1
        await socket.accept()
        line = Line(visit)
        page = self.desk.join(line)
        sender = asyncio.create_task(_send(socket, line))
        try:
            why = await self._listen(socket, page)
            if why:
                self.desk.refused(f"{visit.name}: {why}")
                await socket.close(POLICY_VIOLATION, why)
        except (WebSocketDisconnect, RuntimeError):
            pass  # gone, or going: what to do is the same
        finally:
            self.pages -= 1
            self.desk.leave(page)
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sender

    async def _listen(self, socket: WebSocket, page: Page) -> str:
        """Hear a page until it leaves (raises) or is cut off; returns why."""
        bucket, mistakes = Bucket(RATE, BURST), 0
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return ""
            if not bucket.take(now_ns()):
                return "too many messages"
            text = message.get("text")
            said = parse(text) if text is not None else "bytes; text is expected"
            if isinstance(said, str):
                mistakes += 1
                self.desk.refused(f"what a page said: {said}")
                if mistakes >= MAX_MISTAKES:
                    return "too many malformed messages"
                continue
            self.desk.hear(page, said)


class Door:
    """In front of everything: looks at Host always, at Origin where it is given or needed."""

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str], scheme: str, refused: Callable[[str], None]
    ) -> None:
        self.app, self.hosts, self.scheme, self.refused = app, hosts, scheme, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request or WebSocket in, or answer it with 403."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        socket = scope["type"] == "websocket"
        changes = socket or scope["method"] not in ("GET", "HEAD")
        why = refusal(self.hosts, self.scheme, scope["headers"], changes)
        if not why:
            await self.app(scope, receive, send)
            return
        self.refused(why)
        if socket:
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ""})
            return
        await PlainTextResponse("not here\n", 403, HEADERS)(scope, receive, send)


async def _send(socket: WebSocket, line: Line) -> None:
    """Send what waits; while the browser does not take it, newer takes its place."""
    while True:
        for data in await line.next():
            if isinstance(data, bytes):
                await socket.send_bytes(data)
            else:
                await socket.send_text(data)


def uvicorn_options(certificate: Path | None = None) -> dict[str, Any]:
    """Limits of the HTTP server: sizes, times and numbers of connections are bounded.

    Args:
        certificate: PEM file of certificate and key; with it, TLS is all that is spoken.
    """
    tls = {"ssl_certfile": certificate, "ssl_keyfile": certificate} if certificate else {}
    return tls | {
        "http": "h11", "ws": "websockets-sansio", "ws_max_size": MAX_BYTES,
        "ws_per_message_deflate": False,
        "ws_ping_interval": 5.0, "ws_ping_timeout": 5.0,
        "h11_max_incomplete_event_size": 16 * 1024, "limit_concurrency": 64, "backlog": 64,
        "timeout_keep_alive": 5, "timeout_graceful_shutdown": 1, "lifespan": "off",
        "log_config": None, "access_log": False, "server_header": False, "date_header": False,
        "proxy_headers": False,
    }  # fmt: skip
