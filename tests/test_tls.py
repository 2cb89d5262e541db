"""The console beyond this computer: over TLS or not at all, with a certificate that lasts."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from websockets.sync.client import connect

from robot.config import UserError
from robot.console import node as console_node
from robot.console import tls
from robot.console.access import own_hosts, refusal
from robot.console.node import address_of
from robot.console.tls import own_certificate, state_folder
from robot.runs import load_run
from tests.test_console import House

HOST = "127.0.0.2"  # a loopback address like any other, but not the one that is always served


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "plexus"


def test_a_certificate_is_made_once_kept_private_and_names_its_host(state: Path):
    made = own_certificate("robot.local")
    assert made.path == state / "console-robot.local.pem" and state_folder() == state
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert own_certificate("robot.local") == made
    known = x509.load_pem_x509_certificate(made.path.read_bytes())
    names = known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["robot.local", "localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    der = ssl.PEM_cert_to_DER_cert(made.path.read_text().partition("END PRIVATE KEY-----\n")[2])
    digest = hashlib.sha256(der).hexdigest().upper()
    assert made.fingerprint.replace(":", "") == digest and made.fingerprint.count(":") == 31
    assert own_certificate("10.0.0.7").fingerprint != made.fingerprint, "each host has its own"


def test_one_that_ends_soon_is_made_anew(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(tls, "DAYS", tls.RENEWED_DAYS)
        old = own_certificate("robot.local")
    assert own_certificate("robot.local").fingerprint != old.fingerprint


def test_a_key_that_others_may_read_or_that_is_none_is_refused(state: Path):
    path = own_certificate("robot.local").path
    path.chmod(0o640)
    with pytest.raises(UserError, match="others may read this private key; delete it"):
        own_certificate("robot.local")
    path.chmod(0o600)
    path.write_text("nonsense")
    with pytest.raises(UserError, match="is no certificate; delete it, and it is made anew"):
        own_certificate("robot.local")


def test_without_what_makes_certificates_nothing_goes_beyond_this_computer(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(UserError, match=r"pip install 'plexus\[tls\]'.*a console beyond this"):
        own_certificate("robot.local")


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "224.0.0.1", "1.2.3", "::1", "a b", "a/../b", "-a", "http://a", "a:8"]
)
def test_a_host_is_a_name_or_an_address_of_one_computer(host: str):
    with pytest.raises(UserError, match="expected a name or an IPv4 address of this computer"):
        load_run("loopback", {"console.host": host})


def test_hosts_that_are_not_this_computer_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"no listening at 192\.0\.2\.77: Cannot assign"):
        console_node.listen(0, "192.0.2.77")
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    with pytest.raises(UserError, match=r"stands for 127\.0\.1\.1 here, which only this computer"):
        address_of("robot.local")


def test_a_host_is_added_to_those_that_are_ours_and_no_other():
    hosts = own_hosts(8, "robot.local")
    assert hosts == {"127.0.0.1:8", "localhost:8", "robot.local:8"}
    for scheme, why in (("https", ""), ("http", "Origin http://robot.local:8 is foreign")):
        headers = [(b"host", b"robot.local:8"), (b"origin", f"{scheme}://robot.local:8".encode())]
        assert refusal(hosts, "https", headers, True) == why


# --- a console over TLS ---------------------------------------------------------------------------


class SafeHouse(House):
    """A console that is served over TLS on two addresses."""

    def http(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPSConnection(
            HOST, self.port, timeout=10, context=self.trusting()
        )  # fmt: skip
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        result = answer.status, dict(answer.getheaders()), answer.read().decode()
        connection.close()
        return result

    @staticmethod
    def trusting() -> ssl.SSLContext:
        """Trusts the console's own certificate, and no other; names are compared."""
        path = state_folder() / f"console-{HOST}.pem"
        return ssl.create_default_context(cafile=str(path))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[SafeHouse]:
    made = SafeHouse(tmp_path / "rt", **{"console.host": HOST})
    yield made
    made.close()


def test_pages_come_over_tls_by_the_hosts_name_and_by_no_other(house: SafeHouse):
    address, told = house.address.splitlines()
    assert address.startswith(f"https://{HOST}:{house.port}/?token=")
    own = f"https://{HOST}:{house.port}"
    status, headers, _ = house.http("GET", address.removeprefix(own))
    assert status == 200
    cookie = headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "Secure", "SameSite=strict"))
    cookie = cookie.partition(";")[0]
    plain = socket.create_connection((HOST, house.port), timeout=10)
    with house.trusting().wrap_socket(plain, server_hostname=HOST) as stream:
        der = stream.getpeercert(binary_form=True) or b""
        assert stream.version() in ("TLSv1.2", "TLSv1.3")
    digest = hashlib.sha256(der).hexdigest().upper()
    assert told.replace(":", "") == f"certificate SHA-256 {digest}"
    assert any(digest == line.replace(":", "")[-64:] for line in house.said), "in the terminal too"
    for origin, code in ((own, 204), (f"http://{HOST}:{house.port}", 403), ("null", 403)):
        assert house.http("POST", "/stop", Origin=origin, Cookie=cookie)[0] == code, origin
    for host in ("evil.example", f"robot.local:{house.port}", HOST):
        assert house.http("GET", "/", Host=host, Cookie=cookie)[0] == 403, host
    with connect(
        f"wss://{HOST}:{house.port}/ws", ssl=house.trusting(), origin=own,  # type: ignore[arg-type]
        additional_headers={"Cookie": cookie}, max_size=1 << 22,
    ) as page:  # fmt: skip
        assert '"t": "hello"' in str(page.recv(timeout=20))


def test_what_is_not_tls_gets_nothing(house: SafeHouse):
    with socket.create_connection((HOST, house.port), timeout=10) as plain:
        plain.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}:{house.port}\r\n\r\n".encode())
        with suppress(ConnectionError):
            assert not plain.recv(4096).startswith(b"HTTP")
    with (
        socket.create_connection((HOST, house.port), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname=HOST)
    assert house.http("GET", "/")[0] == 403, "and it goes on"


def test_it_listens_on_its_host_and_on_loopback_alone(house: SafeHouse):
    listening = Path("/proc/net/tcp").read_text()
    rows = [row.split()[1:4] for row in listening.splitlines() if f":{house.port:04X} " in row]
    ours = {place.split(":")[0] for place, _, state in rows if state == "0A"}
    assert ours == {"0100007F", "0200007F"}
