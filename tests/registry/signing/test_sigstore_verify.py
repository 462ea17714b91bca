"""Our bundles, verified by Sigstore's own JavaScript (npm: @sigstore/verify), which knows nothing of us."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from hotshoe.registry.signing.bundle import sign
from hotshoe.registry.signing.keys import PrivateKey

PACKAGES = ("@sigstore/verify@3.1.1", "@sigstore/bundle@4.0.0")
DIGEST = f"sha256:{'ab' * 32}"
PROGRAM = """
const { createPublicKey } = require('crypto');
const { bundleFromJSON } = require('@sigstore/bundle');
const { Verifier, toSignedEntity } = require('@sigstore/verify');
const { bundle, key } = JSON.parse(require('fs').readFileSync(0));
const hints = [];
const trust = {
  certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [],
  publicKey: (hint) => { hints.push(hint); return { publicKey: createPublicKey(key), validFor: () => true }; },
};
const verifier = new Verifier(trust, { ctlogThreshold: 0, tlogThreshold: 0, timestampThreshold: 0 });
verifier.verify(toSignedEntity(bundleFromJSON(bundle)));
console.log(JSON.stringify(hints));
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if None in map(shutil.which, ("npm", "node")):
        pytest.skip("npm or node is not installed (apt: npm)")
    root = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0", *PACKAGES]
    try:
        subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=30)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"{' and '.join(PACKAGES)} cannot be installed: {error}")
    (root / "verify.js").write_text(PROGRAM)
    return root / "verify.js"


def verified(program: Path, bundle: object, pem: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["node", program], input=json.dumps({"bundle": bundle, "key": pem}), capture_output=True, text=True, timeout=100
    )


def test_sigstore_verifies_our_bundle_and_no_other(program: Path) -> None:
    key, other = PrivateKey.new(), PrivateKey.new()
    pem = key.public.pem().decode()
    bundle = json.loads(sign(DIGEST, key))
    done = verified(program, bundle, pem)
    assert done.returncode == 0, done.stderr
    [hint] = json.loads(done.stdout)
    assert base64.b64decode(hint).hex() == key.public.key_id.removeprefix("sha256:")

    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    assert DIGEST.removeprefix("sha256:").encode() in payload
    changed = payload.replace(b"abab", b"abad", 1)
    forged = {**bundle["dsseEnvelope"], "payload": base64.b64encode(changed).decode()}
    for wrong, words in (({**bundle, "dsseEnvelope": forged}, "SIGNATURE_ERROR"), (bundle, "SIGNATURE_ERROR")):
        refused = verified(program, wrong, pem if wrong is not bundle else other.public.pem().decode())
        assert refused.returncode != 0 and words in refused.stderr, refused.stderr
