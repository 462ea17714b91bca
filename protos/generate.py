"""Regenerates the message and service code beside the .proto files: python protos/generate.py [OUTPUT_DIRECTORY]"""

import shutil
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from hotshoe.protos.stub_types import stub_types

HERE = Path(__file__).parent / "v1"
PACKAGE = "hotshoe/protos/v1"  # so that generated imports read `from hotshoe.protos.v1 import ...`


def generate(destination: Path) -> None:
    """Writes *_pb2.py, *_pb2.pyi, *_pb2_grpc.py and *_pb2_grpc.pyi of every .proto file into `destination`."""
    with tempfile.TemporaryDirectory() as out:
        names = [f"{PACKAGE}/{path.name}" for path in sorted(HERE.glob("*.proto"))]
        described = Path(out, "descriptors")
        outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        outputs.append(f"--descriptor_set_out={described}")
        if protoc.main(["protoc", f"-I{PACKAGE}={HERE}", f"-I{_well_known_protos()}", *outputs, *names]) != 0:
            raise SystemExit("protoc failed")
        for path in Path(out, PACKAGE).iterdir():
            shutil.copy(path, destination)
        files = FileDescriptorSet.FromString(described.read_bytes())
    for name, text in stub_types(files, PACKAGE.replace("/", ".")).items():
        (destination / name).write_text(text)


def _well_known_protos() -> Path:
    return Path(protoc.__file__).parent / "_proto"


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
