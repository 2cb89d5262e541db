"""Signs policy files and verifies them (ed25519): what drives hardware was let through by somebody.

A signature lies beside its file as FILE.sig, one line: scheme, public key, signature. Whom we trust
stands in a file of public keys, one per line with a name. Source of the scheme: RFC 8032.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot.config import UserError, read_text, without_extra

SCHEME = "plexus-ed25519-v1"
CONTEXT = b"plexus policy file v1\n"  # a signature of ours means nothing elsewhere
KEY_BYTES, SIGNATURE_BYTES = 32, 64


@dataclass(frozen=True)
class Signed:
    """Who signed a file."""

    name: str  # in the file of trusted keys
    key: str  # public, hex


def trusted_keys_path() -> Path:
    """PLEXUS_TRUSTED_KEYS, else trusted_keys in the user's configuration folder."""
    given = os.environ.get("PLEXUS_TRUSTED_KEYS")
    return Path(given) if given else Path.home() / ".config" / "plexus" / "trusted_keys"


def signature_path(policy: Path) -> Path:
    """Where the signature of a file lies."""
    return policy.with_name(policy.name + ".sig")


def create_key(path: Path) -> str:
    """Make a private key, readable by its owner alone; returns the public one, hex.

    Raises:
        UserError: there is a file already, or it cannot be written.
    """
    nacl = _nacl()
    key = nacl.SigningKey.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(f"{path}: exists already; a key is never overwritten") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(bytes(key).hex() + "\n")
    return bytes(key.verify_key).hex()


def sign(policy: Path, key_path: Path) -> str:
    """Write a policy file's signature beside it; returns the public key, hex.

    Raises:
        UserError: a file is missing, or the key is none or open to others.
    """
    nacl = _nacl()
    if key_path.exists() and key_path.stat().st_mode & 0o077:
        raise UserError(f"{key_path}: others may read this private key; chmod 600 it")
    seed = _hex(read_text(key_path).strip(), KEY_BYTES, f"{key_path}: a private key")
    key = nacl.SigningKey(seed)
    public = bytes(key.verify_key).hex()
    signature = key.sign(CONTEXT + _content(policy)).signature.hex()
    signature_path(policy).write_text(f"{SCHEME} {public} {signature}\n")
    return public


def verify(policy: Path, trusted: Path | None = None) -> Signed:
    """Who signed a policy file, if it is somebody we trust.

    Args:
        policy: the file.
        trusted: file of trusted keys; default: trusted_keys_path().

    Raises:
        UserError: no signature, a wrong one, or one by somebody we do not trust; says what to do.
    """
    nacl = _nacl()
    path = signature_path(policy)
    if not path.exists():
        raise UserError(
            f"{policy}: is not signed (no {path.name} beside it); look at it, then "
            "`plexus policy sign`"
        )
    words = read_text(path).split()
    if len(words) != 3 or words[0] != SCHEME:
        raise UserError(f"{path}: no signature of ours; expected {SCHEME}, a key and a signature")
    key = _hex(words[1], KEY_BYTES, f"{path}: the public key")
    signature = _hex(words[2], SIGNATURE_BYTES, f"{path}: the signature")
    keys = read_trusted(trusted or trusted_keys_path())
    name = keys.get(key.hex())
    if name is None:
        raise UserError(
            f"{policy}: is signed by {key.hex()[:16]}..., whom {trusted or trusted_keys_path()} "
            "does not list; add its key there only if you know whose it is"
        )
    try:
        nacl.VerifyKey(key).verify(CONTEXT + _content(policy), signature)
    except _bad_signature():
        raise UserError(
            f"{policy}: was changed after it was signed by {name}, or the signature is another "
            "file's; do not run it"
        ) from None
    return Signed(name, key.hex())


def read_trusted(path: Path) -> dict[str, str]:
    """Public key, hex, to name; empty where there is no such file.

    Raises:
        UserError: a line that is no key and name.
    """
    if not path.exists():
        return {}
    keys = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, _, name = line.strip().partition(" ")
        public = _hex(key, KEY_BYTES, f"{path}:{number}: a public key").hex()
        keys[public] = name.strip() or key[:16]
    return keys


def _content(policy: Path) -> bytes:
    if not policy.is_file() or policy.is_symlink():
        raise UserError(f"{policy}: not a regular file")
    return policy.read_bytes()


def _hex(text: str, length: int, what: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != length:
        raise UserError(f"{what}: got {text[:24]!r}, expected {2 * length} hexadecimal digits")
    return data


def _bad_signature() -> type[Exception]:
    from nacl.exceptions import BadSignatureError

    return BadSignatureError


def _nacl() -> Any:
    """The library, imported only where something is signed."""
    try:
        from nacl import signing
    except ImportError as error:
        raise without_extra(error, "g1", "the G1") from None
    return signing
