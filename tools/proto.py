"""`python -m tools.proto`: compile quire.proto to the description that the gRPC server reads. Needs grpcio-tools."""

from __future__ import annotations

from pathlib import Path

from grpc_tools import protoc

FOLDER = Path(__file__).parents[1] / "quire/server/grpc"


def compile_proto(target: Path) -> None:
    """Write the compiled description (a FileDescriptorSet) of quire.proto to `target`."""
    words = ["protoc", f"-I{FOLDER}", f"--descriptor_set_out={target}", "quire.proto"]
    if protoc.main(words):
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    compile_proto(FOLDER / "quire.binpb")
