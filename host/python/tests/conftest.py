"""What tests share: data, the program, and a server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest

from guesthouse_pack import graph, lowering
from guesthouse_pack.packing import Exported
from guesthouse_pack.runtimes import run_onnxruntime


@pytest.fixture
def program() -> str:
    """The program under test, which `cargo xtask test` has built."""
    path = os.environ.get("GUESTHOUSE_BIN")
    if not path:
        pytest.fail("GUESTHOUSE_BIN is not set: run the tests by `cargo xtask test`")
    return path


@pytest.fixture
def no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder in which nothing may be left."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert sorted(os.listdir(tmp_path)) == []


def answers(exported: Exported, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What onnxruntime computes with the graph as it is packed."""
    lowering.lower(exported.model)
    graph.keep_outputs(exported.model, exported.outputs)
    given = {
        value.name: numpy.asarray(inputs[value.name]).astype(value.dtype)
        for value in graph.inputs(exported.model)
    }
    return run_onnxruntime(exported.model, given)


class Server:
    """A running server with the artifacts of a folder."""

    def __init__(self, address: str) -> None:
        self.address = address

    def predict(self, model: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs for a row."""
        request = urllib.request.Request(
            f"http://{self.address}/models/{model}/predict",
            json.dumps(row).encode(),
            {"Content-Type": "application/json", "X-API-Key": "local-demo-key"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


@pytest.fixture
def serve(program: str, tmp_path: Path) -> Iterator[Callable[[Path], Server]]:
    """Start servers, which end with the test."""
    with contextlib.ExitStack() as ends:

        def start(repository: Path) -> Server:
            command = [program, "serve", "--demo", "--repository", str(repository)]
            command += ["--state", str(tmp_path / "state"), "--grpc-listen", "off"]
            command += ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
            command += ["--log-format", "json"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            ends.callback(process.wait, timeout=60)
            ends.callback(process.terminate)
            address = None
            assert process.stdout is not None
            for line in process.stdout:
                entry = json.loads(line)
                if entry.get("message") == "listening":
                    address = entry["address"]
                if entry.get("message") == "ready":
                    break
            assert address is not None
            return Server(address)

        yield start
