"""Regenerates the message and service code beside the .proto files: python protos/generate.py [OUTPUT_DIRECTORY]"""

import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent / "v1"
PACKAGE = "hotshoe/protos/v1"  # so that generated imports read `from hotshoe.protos.v1 import ...`


def generate(destination: Path) -> None:
    """Writes *_pb2.py, *_pb2.pyi and *_pb2_grpc.py of every .proto file into `destination`."""
    with tempfile.TemporaryDirectory() as out:
        names = [f"{PACKAGE}/{path.name}" for path in sorted(HERE.glob("*.proto"))]
        outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{PACKAGE}={HERE}", f"-I{_well_known_protos()}", *outputs, *names]) != 0:
            raise SystemExit("protoc failed")
        for path in Path(out, PACKAGE).iterdir():
            shutil.copy(path, destination)


def _well_known_protos() -> Path:
    return Path(protoc.__file__).parent / "_proto"


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
