"""A protoc plugin that makes gRPC's Python stubs, for buf: grpcio-tools has the generator only inside its own protoc.

Reads a CodeGeneratorRequest on stdin and writes the CodeGeneratorResponse to stdout, as every plugin does (descriptor.proto and
plugin.proto of protobuf say what is in them).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

OPTIONAL = plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    """Return the stubs of the request's files, by the protoc of grpcio-tools."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        out.mkdir()
        descriptors = Path(folder, "descriptors.binpb")
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        code = protoc.main(["protoc", f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}", *request.file_to_generate])
        if code != 0:
            return plugin_pb2.CodeGeneratorResponse(
                error=f"the protoc of grpcio-tools ended with status {code}", supported_features=OPTIONAL
            )
        made = [path for path in sorted(out.rglob("*")) if path.is_file()]
        files = [plugin_pb2.CodeGeneratorResponse.File(name=str(path.relative_to(out)), content=path.read_text()) for path in made]
    return plugin_pb2.CodeGeneratorResponse(file=files, supported_features=OPTIONAL)


if __name__ == "__main__":
    asked = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    sys.stdout.buffer.write(generate(asked).SerializeToString())
