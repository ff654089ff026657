"""The clients that were generated from the protocol's own files, and strict about them."""

import asyncio

import grpc
import httpx
from cases import GRPC, KEY, REST, check, refuses, run
from open_inference.grpc.protocol import (ModelInferRequest, ModelMetadataRequest,
                                          ModelReadyRequest, ServerLiveRequest,
                                          ServerMetadataRequest, ServerReadyRequest)
from open_inference.grpc.service import GRPCInferenceServiceStub
from open_inference.openapi.client import AsyncOpenInferenceClient, OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.types import InferenceRequest

HEADERS = {"X-API-Key": KEY}
METADATA = [("x-api-key", KEY)]
LIMIT = 60

NUMBERS = list(range(16))

client = OpenInferenceClient(
    base_url=f"http://{REST}", httpx_client=httpx.Client(headers=HEADERS, timeout=LIMIT)
)


def tensor(name, data, datatype="INT32", shape=(1, 16)):
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data}


def request(inputs, **more):
    return InferenceRequest(inputs=inputs, **more)


def simple(**more):
    return request([tensor("INPUT0", NUMBERS), tensor("INPUT1", [1] * 16)], **more)


def flat(data):
    """The values of an answer, which may be nested."""
    values = getattr(data, "__root__", data)
    for value in values:
        if isinstance(value, list) or hasattr(value, "__root__"):
            yield from flat(value)
        else:
            yield value


@check
def health():
    """REST: health, readiness and metadata, which it parses strictly"""
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness("simple")
    client.check_model_version_readiness("simple", "1")
    server = client.read_server_metadata()
    assert server.name and server.version
    for described in (
        client.read_model_metadata("simple"),
        client.read_model_version_metadata("simple", "1.0.0"),
    ):
        assert (described.name, described.versions) == ("simple", ["1.0.0"])
        assert described.inputs[0].shape == [-1, 16]
    for call in (client.check_model_readiness, client.read_model_metadata):
        refuses(lambda: call("absent"), kind=ApiError)


@check
def add_and_subtract():
    """REST: simple, flat and nested, with an id and outputs"""
    nested = request([tensor("INPUT0", [NUMBERS]), tensor("INPUT1", [[1] * 16])])
    for what in (simple(), nested):
        answer = client.model_infer("simple", request=what)
        assert (answer.model_name, answer.model_version) == ("simple", "1.0.0")
        assert list(flat(answer.outputs[0].data)) == [number + 1 for number in NUMBERS]
        assert list(flat(answer.outputs[1].data)) == [number - 1 for number in NUMBERS]
    what = simple(id="mine", outputs=[{"name": "OUTPUT1"}])
    answer = client.model_version_infer("simple", "1.0.0", request=what)
    assert (answer.id, [output.name for output in answer.outputs]) == ("mine", ["OUTPUT1"])


@check
def datatypes():
    """REST: what JSON has: numbers, texts, truths"""
    for datatype, data in (
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("INT64", [-(1 << 53), 1 << 53]),
        ("FP32", [0.1, -3.5]),
        ("FP64", [0.1, 5e-324]),
        ("BYTES", ["", "häß"]),
    ):
        what = request([tensor("INPUT0", data, datatype, (1, 2))])
        answer = client.model_infer(f"identity_{datatype.lower()}", request=what)
        output = answer.outputs[0]
        assert (output.datatype, output.shape) == (datatype, [1, 2])
        assert list(flat(output.data)) == data, output


@check
def errors():
    """REST: errors have the protocol's form"""
    error = refuses(lambda: client.model_infer("absent", request=simple()), kind=ApiError)
    assert "Request for unknown model" in error.body["error"], error.body
    wrong = request([tensor("INPUT0", NUMBERS)])
    error = refuses(lambda: client.model_infer("simple", request=wrong), kind=ApiError)
    assert error.status_code == 400 and isinstance(error.body["error"], str), error.body


@check
async def asyncio_client():
    """REST: the client for asyncio"""
    async with httpx.AsyncClient(headers=HEADERS, timeout=LIMIT) as connection:
        aio = AsyncOpenInferenceClient(base_url=f"http://{REST}", httpx_client=connection)
        calls = [aio.model_infer("simple", request=simple(id=str(n))) for n in range(32)]
        answers = await asyncio.gather(*calls)
        assert [answer.id for answer in answers] == [str(number) for number in range(32)]


@check
def over_grpc():
    """gRPC: every method of the protocol"""
    with grpc.insecure_channel(GRPC) as channel:
        stub = GRPCInferenceServiceStub(channel)
        more = {"metadata": METADATA, "timeout": LIMIT}
        assert stub.ServerLive(ServerLiveRequest(), **more).live
        assert stub.ServerReady(ServerReadyRequest(), **more).ready
        assert stub.ModelReady(ModelReadyRequest(name="simple"), **more).ready
        assert stub.ModelReady(ModelReadyRequest(name="simple", version="1"), **more).ready
        server = stub.ServerMetadata(ServerMetadataRequest(), **more)
        assert server.name and server.version
        described = stub.ModelMetadata(ModelMetadataRequest(name="simple"), **more)
        assert list(described.outputs[1].shape) == [-1, 16]
        asked = ModelInferRequest(model_name="simple", id="mine")
        for name, data in (("INPUT0", NUMBERS), ("INPUT1", [1] * 16)):
            given = asked.inputs.add(name=name, datatype="INT32", shape=[1, 16])
            given.contents.int_contents.extend(data)
        answer = stub.ModelInfer(asked, **more)
        assert (answer.id, answer.model_version) == ("mine", "1.0.0")
        raw = answer.raw_output_contents[0]
        sums = [int.from_bytes(raw[at : at + 4], "little", signed=True) for at in range(0, 64, 4)]
        assert sums == [number + 1 for number in NUMBERS]
        asked.model_name = "absent"
        error = refuses(lambda: stub.ModelInfer(asked, **more), kind=grpc.RpcError)
        assert error.code() == grpc.StatusCode.NOT_FOUND, error


run()
