"""The console's certificate: made by the program for one host, kept private, told by fingerprint.

Nobody vouches for it but the person who compares the fingerprint that the terminal shows with the
one that the browser shows. Each host has its own, so that what was compared once stays.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robot.config import UserError, without_extra

if TYPE_CHECKING:  # imported where it may be missing
    from cryptography import x509

DAYS, RENEWED_DAYS = 730, 30  # how long one lasts; before its end by so many it is made anew
ALSO = ("localhost", "127.0.0.1")  # by which this computer's own browser, and tunnels, reach us


@dataclass(frozen=True)
class Certificate:
    """A certificate with its private key.

    Attributes:
        path: a PEM file of both.
        fingerprint: SHA-256, as browsers show it.
    """

    path: Path
    fingerprint: str


def state_folder() -> Path:
    """Where we keep what lasts for a user: plexus in XDG_STATE_HOME, else in ~/.local/state."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "plexus"


def own_certificate(host: str) -> Certificate:
    """The certificate for a host: the one there is, or a new one.

    Args:
        host: a name or an IPv4 address.

    Raises:
        UserError: `cryptography` is not installed, others may read the key, or it cannot be kept.
    """
    try:
        from cryptography import x509
    except ImportError as error:
        raise without_extra(error, "tls", "a console beyond this computer") from None

    folder = state_folder()
    path = folder / f"console-{host}.pem"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            if path.stat().st_mode & 0o077:
                raise UserError(f"{path}: others may read this private key; delete it")
            known = x509.load_pem_x509_certificates(path.read_bytes())
            if known and _lasts(known[0]):
                return Certificate(path, fingerprint(known[0]))
        made, pem = _make(host)
        write_private(path, pem)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: is no certificate; delete it, and it is made anew") from None
    return Certificate(path, fingerprint(made))


def write_private(path: Path, text: str) -> None:
    """Replace a file at once; nobody but its user ever reads it."""
    scratch = path.with_suffix(".tmp")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    scratch.rename(path)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate as pairs of digits."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest().hex(":").upper()


def _lasts(certificate: x509.Certificate) -> bool:
    now = datetime.datetime.now(datetime.UTC)
    left = certificate.not_valid_after_utc - now
    return certificate.not_valid_before_utc <= now and left.days >= RENEWED_DAYS


def _make(host: str) -> tuple[x509.Certificate, str]:
    """A new one, and both it and its key as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())  # Ed25519 is known to no browser here
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Plexus console")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    names = [_general_name(one) for one in dict.fromkeys((host, *ALSO))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made, (private + made.public_bytes(Encoding.PEM)).decode()


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
