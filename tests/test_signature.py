"""Signatures: who may vouch, what a changed file and a stranger's key are told, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("nacl")

from policies.signature import create_key, read_trusted, sign, signature_path, verify
from robot.cli import main
from robot.config import UserError


@pytest.fixture
def policy(standing_policy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(standing_policy, tmp_path / "walk.onnx"))


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private key whose public half is trusted under the name "ann"."""
    path = tmp_path / "key"
    public = create_key(path)
    trusted = tmp_path / "trusted_keys"
    trusted.write_text(f"# whom we trust\n\n{public} ann\n")
    monkeypatch.setenv("PLEXUS_TRUSTED_KEYS", str(trusted))
    return path


def test_what_a_trusted_key_signed_is_verified(policy: Path, key: Path):
    public = sign(policy, key)
    assert verify(policy).name == "ann" and verify(policy).key == public
    assert key.stat().st_mode & 0o777 == 0o600


def test_the_signature_is_the_one_of_rfc_8032(tmp_path: Path):
    """Test 3 of section 7.1, by the library that we use."""
    from nacl.signing import SigningKey

    seed = "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"
    got = SigningKey(bytes.fromhex(seed)).sign(bytes.fromhex("af82")).signature.hex()
    assert got.startswith("6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac")


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_changed_file_is_refused(policy: Path, key: Path, at: int):
    sign(policy, key)
    data = bytearray(policy.read_bytes())
    data[at] ^= 1
    policy.write_bytes(data)
    with pytest.raises(UserError, match="was changed after it was signed by ann"):
        verify(policy)


def test_another_files_signature_is_refused(policy: Path, key: Path, tmp_path: Path):
    other = tmp_path / "other.onnx"
    other.write_bytes(b"other")
    sign(other, key)
    shutil.copy(signature_path(other), signature_path(policy))
    with pytest.raises(UserError, match="or the signature is another file's"):
        verify(policy)


def test_a_strangers_signature_is_refused_and_so_is_none(policy: Path, key: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"is not signed \(no walk.onnx.sig beside it\)"):
        verify(policy)
    create_key(tmp_path / "stranger")
    sign(policy, tmp_path / "stranger")
    with pytest.raises(UserError, match="does not list; add its key there only if you know whose"):
        verify(policy)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no signature of ours"), ("plexus-ed25519-v1 00 11", "the public key: got '00'"),
     ("minisign a b", "no signature of ours"),
     (f"plexus-ed25519-v1 {'0' * 64} zz", "the signature: got 'zz'")],
)  # fmt: skip
def test_a_file_that_is_no_signature_is_refused(policy: Path, key: Path, text: str, words: str):
    signature_path(policy).write_text(text)
    with pytest.raises(UserError, match=words):
        verify(policy)


def test_keys_are_guarded(policy: Path, key: Path, tmp_path: Path):
    with pytest.raises(UserError, match="exists already; a key is never overwritten"):
        create_key(key)
    key.chmod(0o644)
    with pytest.raises(UserError, match="others may read this private key"):
        sign(policy, key)
    bad = tmp_path / "bad"
    bad.write_text("12 ann\n")
    with pytest.raises(UserError, match=r"bad:1: a public key: got '12', expected 64 hexadecimal"):
        read_trusted(bad)


def test_a_link_is_no_policy_file(policy: Path, key: Path, tmp_path: Path):
    link = tmp_path / "link.onnx"
    link.symlink_to(policy)
    with pytest.raises(UserError, match="not a regular file"):
        sign(link, key)


def test_the_commands(policy: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("PLEXUS_TRUSTED_KEYS", str(tmp_path / "mine"))
    assert main(["policy", "sign", str(policy), "--key", str(tmp_path / "k"), "--create"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert main(["policy", "verify", str(policy)]) == 2
    assert "does not list" in capsys.readouterr().err
    (tmp_path / "mine").write_text(line.replace("your-name", "me") + "\n")
    assert main(["policy", "verify", str(policy)]) == 0
    assert "signed by me" in capsys.readouterr().out


@pytest.mark.parametrize("run", ["g1", "g1-emulator"])
def test_x7_hardware_and_emulator_refuse_what_nobody_trusted_signed(
    policy: Path, key: Path, capsys, run: str
):
    assert main(["run", run, "--policy", str(policy), "--headless"]) == 2
    said = capsys.readouterr().err
    assert "is not signed" in said and "To run it all the same: --unsigned-policy" in said
