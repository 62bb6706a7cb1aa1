from __future__ import annotations

import base64
import hashlib
import json
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from nacl.secret import SecretBox

from artifact.errors import InvalidInput, Malformed
from supplychain import keyfile
from supplychain.keys import PrivateKey, PublicKey, generate


def no_password() -> bytes:
    raise AssertionError("asked for a password")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rewrap(path: Path, change: dict[str, object]) -> None:
    """Rewrite the scrypt parameters inside a key file."""
    lines = path.read_text().splitlines()
    document = json.loads(base64.b64decode("".join(lines[1:-1])))
    document["kdf"]["params"] |= change
    body = base64.b64encode(json.dumps(document).encode()).decode()
    path.write_text("\n".join([lines[0], body, lines[-1], ""]))


def test_generated_pair_signs_and_verifies(tmp_path: Path) -> None:
    private_path, public_path = generate(tmp_path / "release", b"secret")
    assert (private_path, public_path) == (tmp_path / "release.key", tmp_path / "release.pub")
    assert stat.S_IMODE(private_path.stat().st_mode) == 0o600
    assert private_path.read_text().startswith("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n")
    private = PrivateKey.load(str(private_path), lambda: b"secret")
    public = PublicKey.load(str(public_path))
    assert public == private.public
    signature = private.sign(b"data")
    assert public.verify(signature, b"data")
    assert not public.verify(signature, b"other data")
    assert not public.verify(signature[:-1], b"data")
    assert not public.verify(b"", b"data")
    assert names(tmp_path) == ["release.key", "release.pub"]


def test_empty_password_is_a_password(tmp_path: Path) -> None:
    private_path, _ = generate(tmp_path / "k", b"")
    assert PrivateKey.load(str(private_path), lambda: b"").sign(b"x")


@pytest.mark.parametrize("taken", ["k.key", "k.pub"])
def test_generate_overwrites_nothing(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(InvalidInput, match="not overwritten"):
        generate(tmp_path / "k", b"")
    assert names(tmp_path) == [taken]
    assert (tmp_path / taken).read_text() == "mine"


def test_of_two_at_once_one_wins_and_its_pair_fits(tmp_path: Path) -> None:
    def attempt(_: int) -> bool:
        try:
            generate(tmp_path / "k", b"pw")
        except InvalidInput:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(attempt, range(3))) == [False, False, True]
    assert names(tmp_path) == ["k.key", "k.pub"]
    private = PrivateKey.load(str(tmp_path / "k.key"), lambda: b"pw")
    assert private.public == PublicKey.load(str(tmp_path / "k.pub"))


def test_generate_wants_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        generate(tmp_path / "nowhere" / "k", b"")


def test_wrong_password(tmp_path: Path) -> None:
    private_path, _ = generate(tmp_path / "k", b"right")
    with pytest.raises(InvalidInput, match="wrong password") as error:
        PrivateKey.load(str(private_path), lambda: b"wrong")
    assert error.value.exit_code == 2


def test_the_older_label_is_read(tmp_path: Path) -> None:
    private_path, public_path = generate(tmp_path / "k", b"pw")
    private_path.write_text(private_path.read_text().replace("SIGSTORE", "COSIGN"))
    assert PrivateKey.load(str(private_path), lambda: b"pw").public == PublicKey.load(str(public_path))


def test_the_file_opens_with_nothing_but_the_published_recipe(tmp_path: Path) -> None:
    """scrypt, secretbox and PKCS#8 by hand, as cosign does it."""
    private_path, public_path = generate(tmp_path / "k", b"pw")
    document = json.loads(base64.b64decode("".join(private_path.read_text().splitlines()[1:-1])))
    assert document["kdf"]["name"] == "scrypt"
    assert document["kdf"]["params"] == {"N": 65536, "r": 8, "p": 1}
    assert document["cipher"]["name"] == "nacl/secretbox"
    salt = base64.b64decode(document["kdf"]["salt"])
    secret = hashlib.scrypt(b"pw", salt=salt, n=65536, r=8, p=1, maxmem=2**27, dklen=32)
    box, nonce = SecretBox(secret), base64.b64decode(document["cipher"]["nonce"])
    key = serialization.load_der_private_key(box.decrypt(base64.b64decode(document["ciphertext"]), nonce), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert pem == public_path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"N": 2**30},
        {"N": 65536, "r": 2**20},
        {"N": 65535},
        {"N": 1},
        {"p": 10**6},
        {"r": 0},
        {"N": "65536"},
        {"N": True},
    ],
    ids=str,
)
def test_scrypt_parameters_are_bounded(tmp_path: Path, change: dict[str, object]) -> None:
    private_path, _ = generate(tmp_path / "k", b"pw")
    rewrap(private_path, change)
    with pytest.raises(InvalidInput, match="scrypt"):
        PrivateKey.load(str(private_path), lambda: b"pw")


def test_scrypt_memory_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    private_path, _ = generate(tmp_path / "k", b"pw")
    rewrap(private_path, {"N": 2**19})
    with pytest.raises(InvalidInput, match="more than 256 MiB"):
        PrivateKey.load(str(private_path), lambda: b"pw")


def test_plain_pkcs8_from_openssl_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plain.pem"
    command = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    private = PrivateKey.load(str(path), no_password)
    monkeypatch.setenv("SIGNING_KEY", path.read_text())
    assert PrivateKey.load("env://SIGNING_KEY", no_password).public == private.public
    monkeypatch.setenv("VERIFY_KEY", private.public.pem.decode())
    assert PublicKey.load("env://VERIFY_KEY") == private.public


def test_the_hint_is_the_hash_of_the_spki_however_the_point_is_encoded() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = private.public_key().public_bytes(serialization.Encoding.DER, form)
    key = PublicKey.parse(private.public_key().public_bytes(serialization.Encoding.PEM, form))
    assert key.hint == base64.b64encode(hashlib.sha256(der).digest()).decode()
    point = private.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    header = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    body = base64.b64encode(header + point)
    compressed = b"-----BEGIN PUBLIC KEY-----\n" + body + b"\n-----END PUBLIC KEY-----\n"
    assert PublicKey.parse(compressed) == key


def test_ed25519_is_read_and_verified() -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    key = PublicKey.parse(pem)
    assert key.pem == pem
    assert key.verify(private.sign(b"data"), b"data")
    assert not key.verify(private.sign(b"data"), b"other")
    assert not key.verify(b"short", b"data")


def test_other_keys_are_refused(tmp_path: Path) -> None:
    form, encoding = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.Encoding.PEM
    with pytest.raises(InvalidInput, match="curve"):
        PublicKey.parse(ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(encoding, form))
    with pytest.raises(InvalidInput, match="key type"):
        PublicKey.parse(rsa.generate_private_key(65537, 2048).public_key().public_bytes(encoding, form))
    private_path, public_path = generate(tmp_path / "k", b"")
    with pytest.raises(InvalidInput, match="private key"):
        PublicKey.load(str(private_path))
    with pytest.raises(InvalidInput, match="public key"):
        PrivateKey.load(str(public_path), no_password)


@pytest.mark.parametrize("location", ["/nowhere/k", "env://STOWAGE_NOT_SET", "https://keys.example/k", "k\0k", "/"])
def test_unusable_locations(location: str) -> None:
    with pytest.raises(InvalidInput):
        PublicKey.load(location)
    with pytest.raises(InvalidInput):
        PrivateKey.load(location, no_password)


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="too large"):
        PublicKey.load("/dev/zero")


def test_a_key_of_nothing_but_space_is_read_once() -> None:
    """Such a key may stand in a policy that came with an archive."""
    head = b"-----BEGIN PUBLIC KEY-----"
    with pytest.raises(InvalidInput, match="not a PEM"):
        PublicKey.parse(head + b" " * (keyfile.MAX_BYTES - len(head)))
    with pytest.raises(InvalidInput, match="larger"):
        PublicKey.parse(head + b" " * keyfile.MAX_BYTES)


@given(st.binary(max_size=300))
def test_arbitrary_public_keys(raw: bytes) -> None:
    body = base64.b64encode(raw)
    for pem in (raw, b"-----BEGIN PUBLIC KEY-----\n" + body + b"\n-----END PUBLIC KEY-----\n"):
        try:
            PublicKey.parse(pem)
        except InvalidInput:
            continue


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kdf", "name", "salt"]), inner),
    max_leaves=8,
)


@given(JSON | st.binary(max_size=100))
def test_arbitrary_encrypted_keys(value: object) -> None:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    text = f"-----BEGIN {keyfile.LABEL}-----\n{base64.b64encode(raw).decode()}\n-----END {keyfile.LABEL}-----\n"
    with pytest.raises(Malformed):
        keyfile.unseal(text, b"")
