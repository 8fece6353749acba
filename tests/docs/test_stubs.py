"""The sample for buf writes stubs where the options of the contract say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.examples import CACHE, EXAMPLES, environment

ROOT = Path(__file__).parent.parent.parent
SAMPLE: dict[str, Any] = yaml.safe_load((ROOT / "buf.gen.yaml").read_text("utf-8"))
# A file of each plugin, and what stands in it.
WRITTEN = {
    "protoc-gen-go": ("go/embedgrpc/v1/common.pb.go", "package embedgrpcv1"),
    "protoc-gen-go-grpc": ("go/embedgrpc/v1/rerank_service_grpc.pb.go", "package embedgrpcv1"),
    "protoc-gen-ts_proto": ("typescript/embedgrpc/v1/common.ts", "export enum ErrorReason"),
    "java": ("java/com/embedgrpc/v1/EmbedRequest.java", "package com.embedgrpc.v1;"),
    "protoc-gen-grpc-java": (
        "java/com/embedgrpc/v1/RerankServiceGrpc.java",
        "package com.embedgrpc.v1;",
    ),
    "csharp": ("csharp/Embedgrpc/V1/Common.cs", "namespace Embedgrpc.V1 {"),
    "grpc_csharp_plugin": ("csharp/Embedgrpc/V1/RerankServiceGrpc.cs", "namespace Embedgrpc.V1 {"),
    "php": ("php/Embedgrpc/V1/EmbedRequest.php", "namespace Embedgrpc\\V1;"),
    "grpc_php_plugin": ("php/Embedgrpc/V1/RerankServiceClient.php", "namespace Embedgrpc\\V1;"),
    "ruby": ("ruby/embedgrpc/v1/common_pb.rb", "module Embedgrpc"),
    "grpc_ruby_plugin": ("ruby/embedgrpc/v1/rerank_service_services_pb.rb", "module Embedgrpc"),
    "objc": ("objc/embedgrpc/v1/Common.pbobjc.h", "EXXItemError"),
}


def name_of(plugin: dict[str, str]) -> str:
    """Return the name of a plugin."""
    return plugin.get("local") or plugin["protoc_builtin"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The PATH with the plugins that the examples downloaded."""
    programs = tmp_path_factory.mktemp("programs")
    # Maven downloads it under the name of its version, and not as a program.
    for downloaded in CACHE.glob("maven/io/grpc/protoc-gen-grpc-java/*/*.exe"):
        program = programs / "protoc-gen-grpc-java"
        shutil.copy(downloaded, program)
        program.chmod(0o755)
    folders = (
        programs,
        EXAMPLES / "typescript" / "node_modules" / ".bin",
        Path(sys.executable).parent,
        os.environ["PATH"],
    )
    return os.pathsep.join(str(folder) for folder in folders)


def generate(plugin: dict[str, str], into: Path, path: str, **more: Any) -> dict[Path, bytes]:
    """Run one plugin of the sample; return the files that it writes."""
    subprocess.run(
        [
            *("/usr/bin/env", "buf", "generate", "--output", str(into)),
            *("--template", json.dumps({**SAMPLE, "plugins": [plugin], **more})),
        ],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        check=True,
    )
    return {
        file.relative_to(into / "gen"): file.read_bytes()
        for file in into.rglob("*")
        if file.is_file()
    }


@pytest.mark.long
@pytest.mark.parametrize("plugin", SAMPLE["plugins"], ids=name_of)
def test_a_plugin_writes_what_managed_mode_would(
    plugin: dict[str, str], path: str, tmp_path: Path
) -> None:
    """The options of the contract name the folder and the package, as buf's own would."""
    name = name_of(plugin)
    program = plugin.get("local", "protoc")
    if shutil.which(program, path=path) is None:
        pytest.skip(f"{program} is not installed")
    files = generate(plugin, tmp_path / "sample", path)
    file, line = WRITTEN[name]
    assert line in files[Path(file)].decode()
    # Managed mode sets no package for Go, unless it is told one.
    if "go" not in file.split("/"):
        assert generate(plugin, tmp_path / "managed", path, managed={"enabled": True}) == files


@pytest.mark.long
def test_the_stubs_of_go_compile(path: str, tmp_path: Path) -> None:
    """A new module needs nothing but the stubs and the libraries that they import."""
    plugins = [plugin for plugin in SAMPLE["plugins"] if plugin["out"] == "gen/go"]
    for program in ("go", *map(name_of, plugins)):
        if shutil.which(program, path=path) is None:
            pytest.skip(f"{program} is not installed")
    for plugin in plugins:
        generate(plugin, tmp_path, path)
    for command in (("mod", "init", "example"), ("mod", "tidy"), ("build", "./...")):
        done = subprocess.run(
            ["/usr/bin/env", "go", *command],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_sample_sets_no_options() -> None:
    """It has each plugin once and neither managed mode nor options that name packages."""
    assert [name_of(plugin) for plugin in SAMPLE["plugins"]] == list(WRITTEN)
    assert set(SAMPLE) == {"version", "inputs", "plugins"}
    assert not any("opt" in plugin for plugin in SAMPLE["plugins"] if plugin["out"] == "gen/go")
