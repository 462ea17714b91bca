"""The committed generated code is what the .proto files say."""

import filecmp
import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).parents[1] / "protos"


def test_generated_code_is_current(tmp_path):
    subprocess.run([sys.executable, "-P", PROTOS / "generate.py", tmp_path], check=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    same, different, missing = filecmp.cmpfiles(tmp_path, PROTOS / "v1", names, shallow=False)
    assert (different, missing) == ([], [])
    assert len(same) == 12
