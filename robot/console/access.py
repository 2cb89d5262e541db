"""Decides who comes in: one-time tokens, cookies, roles, Host and Origin, and rate limits.

Pure: it is given times and headers and knows no socket. Source of the rules: faults.md 7.4.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

NS_PER_S = 1_000_000_000
TOKEN_LIFE_NS = 600 * NS_PER_S  # of a link that one person gives another
VISIT_LIFE_NS = 12 * 3600 * NS_PER_S
MAX_TOKENS, MAX_VISITS = 16, 64  # the oldest goes first


class Role(IntEnum):
    """What a person may do; each includes those before it. Everybody may stop the robot."""

    OBSERVE = 1
    DRIVE = 2
    ARM = 3


@dataclass(frozen=True)
class Visit:
    """One browser that came in with a token.

    Attributes:
        name: how others see it.
        role: what it may do.
        until_ns: its cookie counts until then.
    """

    name: str
    role: Role
    until_ns: int


class Access:
    """Tokens that open the door once, and cookies that keep it open; only hashes are kept."""

    def __init__(self) -> None:
        self._tokens: dict[bytes, tuple[Role, int | None]] = {}  # hash -> role, end; None: no end
        self._visits: dict[bytes, Visit] = {}  # hash of the cookie
        self._count = 0

    def issue(self, role: Role, until_ns: int | None) -> str:
        """A new token for one visit; `until_ns` None: as long as this process lives."""
        token = secrets.token_urlsafe(24)
        if len(self._tokens) >= MAX_TOKENS:
            # The one without end is the run's own door: it stays.
            self._tokens.pop(next(key for key, (_, end) in self._tokens.items() if end is not None))
        self._tokens[_digest(token)] = (role, until_ns)
        return token

    @property
    def open(self) -> bool:
        """True while there is a token without end: the run's own door."""
        return any(end is None for _, end in self._tokens.values())

    def redeem(self, token: str, now_ns: int) -> str | None:
        """The cookie for a token that is good, which it then no longer is; None for any other."""
        # Looked up by hash: how long it takes tells nothing about the token.
        role, until_ns = self._tokens.pop(_digest(token), (None, None))
        if role is None or (until_ns is not None and now_ns > until_ns):
            return None
        cookie = secrets.token_urlsafe(32)
        if len(self._visits) >= MAX_VISITS:
            self._visits.pop(next(iter(self._visits)))
        self._count += 1
        visit = Visit(f"browser {self._count}", role, now_ns + VISIT_LIFE_NS)
        self._visits[_digest(cookie)] = visit
        return cookie

    def visit(self, cookie: str | None, now_ns: int) -> Visit | None:
        """Whose cookie this is; None if nobody's, or too old."""
        visit = self._visits.get(_digest(cookie)) if cookie else None
        return visit if visit and now_ns <= visit.until_ns else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


class Bucket:
    """Lets through `rate` things per second on average and `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, float(burst)
        self._level, self._last_ns = float(burst), 0

    def take(self, now_ns: int) -> bool:
        """True if one more may pass."""
        gained = (now_ns - self._last_ns) * 1e-9 * self._rate
        self._level = min(self._burst, self._level + gained)
        self._last_ns = now_ns
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True


def own_hosts(port: int, host: str | None = None) -> frozenset[str]:
    """Host headers under which browsers may reach us; any other is a stranger's.

    A name that an attacker's DNS points at our address is not among them.

    Args:
        port: where we listen.
        host: by which other computers' browsers come, if any may.
    """
    names = {"127.0.0.1", "localhost"} | ({host} if host else set())
    return frozenset(f"{name}:{port}" for name in names)


def refusal(
    hosts: frozenset[str], scheme: str, headers: Iterable[tuple[bytes, bytes]], origin_needed: bool
) -> str:
    """Why a request may not come in, judged by its headers: "" (it may), or one sentence.

    Args:
        hosts: those of own_hosts.
        scheme: http or https, as we serve.
        headers: name in lower case, value; as ASGI gives them.
        origin_needed: for whatever changes something: pages of others can send it too.
    """
    pairs = [(name, value.decode("latin-1")) for name, value in headers]
    host = [value for name, value in pairs if name == b"host"]
    origin = [value for name, value in pairs if name == b"origin"]
    if len(host) != 1 or host[0] not in hosts:
        return f"Host {', '.join(host) or 'none'} is not this console"
    if not origin:
        return "no Origin was given" if origin_needed else ""
    return "" if origin == [f"{scheme}://{host[0]}"] else f"Origin {', '.join(origin)} is foreign"
