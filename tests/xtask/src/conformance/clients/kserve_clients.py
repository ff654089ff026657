"""kserve's clients over REST and gRPC."""

import grpc
import httpx
import numpy as np
from cases import (GRPC, KEY, REST, assert_same, binary, check, json, model, numbers, run)
from kserve import (InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig)
from kserve.protocol.infer_type import RequestedOutput
from kserve.utils.numpy_codec import from_np_dtype

BASE = f"http://{REST}"
HEADERS = {"X-API-Key": KEY}
METADATA = [("x-api-key", KEY)]

# What the library itself writes down where it writes BYTES as JSON, it reads as texts only.
TEXTS = "häß"


def rest():
    return InferenceRESTClient(RESTConfig(protocol="v2", retries=1))


def tensor(name, values, binary_data):
    given = InferInput(name, list(values.shape), from_np_dtype(values.dtype))
    given.set_data_from_numpy(values, binary_data=binary_data)
    return given


def request(name, inputs, **more):
    return InferRequest(model_name=name, infer_inputs=inputs, **more)


def simple(binary_data, **more):
    one, other, _, _ = numbers()
    inputs = [tensor("INPUT0", one, binary_data), tensor("INPUT1", other, binary_data)]
    return request("simple", inputs, **more)


def output(response, name="OUTPUT0"):
    return response.get_output_by_name(name).as_numpy()


async def ask(client, name, what, **more):
    return await client.infer(BASE, what, model_name=name, headers=dict(HEADERS), **more)


@check
async def health():
    """REST: health and readiness, whose bodies it reads"""
    client = rest()
    assert await client.is_server_live(BASE) is True
    assert await client.is_server_ready(BASE) is True
    assert await client.is_model_ready(BASE, "simple", headers=HEADERS)
    assert not await client.is_model_ready(BASE, "absent", headers=HEADERS)


@check
async def add_and_subtract():
    """REST: simple, in JSON and binary"""
    _, _, total, difference = numbers()
    for binary_data in (True, False):
        response = await ask(rest(), "simple", simple(binary_data, request_id="mine"))
        # Of the version, the library tells nothing.
        assert (response.id, response.model_name) == ("mine", "simple")
        assert_same(total, output(response))
        assert_same(difference, output(response, "OUTPUT1"))
    asked = [RequestedOutput("OUTPUT1", {"binary_data": True})]
    response = await ask(rest(), "simple", simple(True, request_outputs=asked))
    assert [each.name for each in response.outputs] == ["OUTPUT1"]
    assert_same(difference, output(response, "OUTPUT1"))


@check
async def every_datatype():
    """REST: every datatype that the library has, in JSON and binary"""
    for datatype, values in json().items():
        response = await ask(rest(), model(datatype), one(datatype, values, False))
        assert_same(values, output(response))
    for datatype, values in binary().items():
        if datatype == "BYTES":
            # It reads byte strings as texts on their way out of the answer.
            values = np.array([[TEXTS.encode()], [b""]], dtype=np.object_)
        asked = [RequestedOutput("OUTPUT0", {"binary_data": True})]
        what = one(datatype, values, True, request_outputs=asked)
        assert_same(values, output(await ask(rest(), model(datatype), what)))


def one(datatype, values, binary_data, **more):
    return request(model(datatype), [tensor("INPUT0", values, binary_data)], **more)


@check
async def errors():
    """REST: errors, whose words it finds by their type"""
    try:
        await ask(rest(), "absent", simple(True))
    except httpx.HTTPStatusError as error:
        assert "Request for unknown model" in str(error), error
    else:
        raise AssertionError("a model that is not there answers")


@check
async def grpc_health():
    """gRPC: health and readiness"""
    async with InferenceGRPCClient(GRPC) as client:
        assert await client.is_server_live(headers=METADATA)
        assert await client.is_server_ready(headers=METADATA)
        assert await client.is_model_ready("simple", headers=METADATA)


@check
async def grpc_add_and_subtract():
    """gRPC: simple, with typed and raw contents"""
    _, _, total, difference = numbers()
    async with InferenceGRPCClient(GRPC) as client:
        for binary_data in (True, False):
            response = await client.infer(simple(binary_data, request_id="mine"), headers=METADATA)
            assert (response.id, response.model_name) == ("mine", "simple")
            assert_same(total, output(response))
            assert_same(difference, output(response, "OUTPUT1"))


@check
async def grpc_every_datatype():
    """gRPC: every datatype that the library has, with typed and raw contents"""
    async with InferenceGRPCClient(GRPC) as client:
        for datatype, values in binary().items():
            # FP16 has no typed form.
            for binary_data in (True,) if datatype == "FP16" else (True, False):
                if datatype == "BYTES":
                    values = np.array([[TEXTS.encode()], [b""]], dtype=np.object_)
                response = await client.infer(one(datatype, values, binary_data), headers=METADATA)
                if binary_data or datatype not in ("FP32", "FP64"):
                    assert_same(values, output(response))
                else:
                    # Numbers go through Python's, in which a NaN's message need not survive.
                    np.testing.assert_array_equal(values, output(response))


@check
async def grpc_errors():
    """gRPC: errors"""
    async with InferenceGRPCClient(GRPC) as client:
        what = simple(True)
        what.model_name = "absent"
        try:
            await client.infer(what, headers=METADATA)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, error
            assert "Request for unknown model" in error.details(), error
        else:
            raise AssertionError("a model that is not there answers")


run()
