"""Generates `arctic_rpc` from its .proto files when the distribution is built, editable or not."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = Path(__file__).parent


class ProtoBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs protoc with `protos/` as the import root, so that generated imports need no patching."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (the hook's interface)
        """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` beside each .proto file."""
        import grpc_tools
        from grpc_tools import protoc

        well_known = Path(grpc_tools.__file__).parent / "_proto"
        sources = [str(path) for path in sorted((PROTOS / "arctic_rpc").glob("*.proto"))]
        outputs = [f"--{kind}_out={PROTOS}" for kind in ("python", "grpc_python", "pyi")]
        if protoc.main(["protoc", f"--proto_path={PROTOS}", f"--proto_path={well_known}", *outputs, *sources]) != 0:
            raise RuntimeError(f"protoc failed on {sources}")
