"""tritonclient over REST, with threads and with asyncio."""

import asyncio

import ml_dtypes
import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from cases import (ADMIN_KEY, KEY, MANY, REST, assert_same, binary, check, json, model, numbers,
                   refuses, run)
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

HEADERS = {"X-API-Key": KEY}
ADMIN = {"X-API-Key": ADMIN_KEY}
client = triton.InferenceServerClient(REST, concurrency=4)


def headers():
    # The client adds to what it is given.
    return dict(HEADERS)


def refused(function, *words, about=""):
    return refuses(function, *words, kind=InferenceServerException, about=about)


def tensor(name, values, binary_data=True):
    given = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    given.set_data_from_numpy(values, binary_data=binary_data)
    return given


def simple(binary_data=True):
    one, other, _, _ = numbers()
    return [tensor("INPUT0", one, binary_data), tensor("INPUT1", other, binary_data)]


def wanted(name, **more):
    return triton.InferRequestedOutput(name, **more)


def infer(name, inputs, **more):
    return client.infer(name, inputs, headers=headers(), **more)


@check
def health():
    """health and readiness"""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("simple", headers=headers())
    for version in ("1", "1.0.0", "^1.0"):
        assert client.is_model_ready("simple", version, headers=headers()), version
    assert not client.is_model_ready("simple", "9", headers=headers())
    assert not client.is_model_ready("absent", headers=headers())


@check
def metadata():
    """metadata of server and model, configuration"""
    server = client.get_server_metadata(headers=headers())
    assert server["name"] and server["version"] and "binary_tensor_data" in server["extensions"]
    described = client.get_model_metadata("simple", headers=headers())
    assert (described["name"], described["versions"]) == ("simple", ["1.0.0"])
    assert described["inputs"][0] == {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]}
    assert [output["name"] for output in described["outputs"]] == ["OUTPUT0", "OUTPUT1"]
    config = client.get_model_config("simple", headers=headers())
    assert (config["name"], config["max_batch_size"]) == ("simple", 8)
    first = config["input"][0]
    assert (first["name"], first["data_type"], first["dims"]) == ("INPUT0", "TYPE_INT32", [16])
    assert config["output"][1]["name"] == "OUTPUT1"
    for name in ("get_model_metadata", "get_model_config"):
        refused(lambda: getattr(client, name)("absent", headers=headers()), "absent")


@check
def add_and_subtract():
    """simple, in every mixture of binary and JSON"""
    _, _, total, difference = numbers()
    for given in (True, False):
        for outputs in (
            None,
            [wanted("OUTPUT0", binary_data=True), wanted("OUTPUT1", binary_data=True)],
            [wanted("OUTPUT0", binary_data=False), wanted("OUTPUT1", binary_data=False)],
            [wanted("OUTPUT0", binary_data=True), wanted("OUTPUT1", binary_data=False)],
        ):
            result = infer("simple", simple(given), outputs=outputs)
            assert_same(total, result.as_numpy("OUTPUT0"))
            assert_same(difference, result.as_numpy("OUTPUT1"))
    one, other, _, _ = numbers()
    mixed = [tensor("INPUT0", one, True), tensor("INPUT1", other, False)]
    assert_same(total, infer("simple", mixed).as_numpy("OUTPUT0"))


@check
def more_than_a_batch():
    """more rows than the guest takes at once"""
    one, other, total, _ = (np.tile(rows, (9, 1)) for rows in numbers())
    result = infer("simple", [tensor("INPUT0", one), tensor("INPUT1", other)])
    assert_same(total, result.as_numpy("OUTPUT0"))


@check
def strings():
    """simple_string, as bytes and as numpy's own strings"""
    one, other, total, difference = numbers()
    for binary_data in (True, False):
        for kind in (np.object_, np.bytes_):
            as_text = lambda values: np.array(
                [str(value).encode() for value in values.flat], dtype=kind
            ).reshape(values.shape)
            inputs = [
                tensor("INPUT0", as_text(one), binary_data),
                tensor("INPUT1", as_text(other), binary_data),
            ]
            result = infer("simple_string", inputs)
            for output, values in (("OUTPUT0", total), ("OUTPUT1", difference)):
                assert [int(text) for text in result.as_numpy(output).flat] == list(values.flat)
    bad = [tensor("INPUT0", np.array([[b"one"] * 16], dtype=np.object_)), simple()[1]]
    refused(lambda: infer("simple_string", bad))


@check
def every_datatype_binary():
    """every datatype in the binary form, to the bit"""
    for datatype, values in binary(ml_dtypes.bfloat16).items():
        result = infer(model(datatype), [tensor("INPUT0", values)])
        assert_same(values, result.as_numpy("OUTPUT0"))
        assert result.get_output("OUTPUT0")["datatype"] == datatype


@check
def every_datatype_json():
    """every datatype that JSON has, as JSON"""
    for datatype, values in json().items():
        outputs = [wanted("OUTPUT0", binary_data=False)]
        result = infer(model(datatype), [tensor("INPUT0", values, False)], outputs=outputs)
        assert "data" in result.get_output("OUTPUT0")
        assert_same(values, result.as_numpy("OUTPUT0"))


@check
def nothing_and_much():
    """tensors of no elements and of many"""
    for values in (np.zeros((2, 0), np.float32), np.arange(2 * MANY, dtype=np.float32)):
        values = values.reshape(2, -1)
        for binary_data in (True, False):
            result = infer("identity_fp32", [tensor("INPUT0", values, binary_data)])
            assert_same(values, result.as_numpy("OUTPUT0"))


@check
def outputs_and_ids():
    """outputs that are asked for, in that order, and ids"""
    _, _, total, difference = numbers()
    result = infer("simple", simple(), outputs=[wanted("OUTPUT1")], request_id="mine")
    assert result.as_numpy("OUTPUT0") is None
    assert_same(difference, result.as_numpy("OUTPUT1"))
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "simple", "1.0.0")
    result = infer("simple", simple(), outputs=[wanted("OUTPUT1"), wanted("OUTPUT0")])
    names = [output["name"] for output in result.get_response()["outputs"]]
    assert names == ["OUTPUT1", "OUTPUT0"]
    assert_same(total, result.as_numpy("OUTPUT0"))
    assert "id" not in result.get_response()


@check
def versions():
    """versions by number, by major and by range"""
    for version in ("1.0.0", "1", "^1.0"):
        result = infer("simple", simple(), model_version=version)
        assert result.get_response()["model_version"] == "1.0.0"
    refused(lambda: infer("simple", simple(), model_version="9"))


@check
def errors():
    """what is wrong is refused in the words that programs look for"""
    error = refused(lambda: infer("absent", simple()), "Request for unknown model")
    assert error.status() in ("400", "404"), error.status()
    one, other, _, _ = numbers()
    wrong = [
        [tensor("INPUT0", one)],
        simple() + [tensor("INPUT2", one)],
        [tensor("INPUT0", one), tensor("INPUT0", one)],
        [tensor("INPUT0", one[:, :8]), tensor("INPUT1", other)],
        [tensor("INPUT0", one.astype(np.float32)), tensor("INPUT1", other)],
        [tensor("INPUT0", np.tile(one, (2, 1))), tensor("INPUT1", other)],
        [tensor("INPUT0", one[0]), tensor("INPUT1", other[0])],
        [triton.InferInput("INPUT0", [1, 16], "INT32"), tensor("INPUT1", other)],
    ]
    for place, inputs in enumerate(wrong):
        error = refused(lambda: infer("simple", inputs), about=f"number {place}")
        assert error.status() in ("400", "422"), error
    refused(lambda: infer("simple", simple(), outputs=[wanted("OUTPUT2")]), "OUTPUT2")
    error = refused(lambda: client.infer("simple", simple()))
    assert error.status() == "401", error.status()


@check
def compression():
    """gzip and deflate, both ways"""
    values = np.arange(2 * MANY, dtype=np.int64).reshape(2, -1)
    for given in (None, "gzip", "deflate"):
        for answered in (None, "gzip", "deflate"):
            for binary_data in (True, False):
                result = infer(
                    "identity_int64",
                    [tensor("INPUT0", values, binary_data)],
                    outputs=[wanted("OUTPUT0", binary_data=binary_data)],
                    request_compression_algorithm=given,
                    response_compression_algorithm=answered,
                )
                assert_same(values, result.as_numpy("OUTPUT0"))


@check
def many_at_once():
    """many requests at once, each with its own answer"""
    values = [np.full((1, 3), number, dtype=np.int32) for number in range(64)]
    pending = [
        client.async_infer(
            "identity_int32", [tensor("INPUT0", each)], request_id=str(index), headers=headers()
        )
        for index, each in enumerate(values)
    ]
    for index, (each, handle) in enumerate(zip(values, pending)):
        result = handle.get_result()
        assert result.get_response()["id"] == str(index)
        assert_same(each, result.as_numpy("OUTPUT0"))


@check
async def asyncio_client():
    """the client for asyncio"""
    async with triton_aio.InferenceServerClient(REST) as aio:
        assert await aio.is_server_live() and await aio.is_server_ready()
        assert await aio.is_model_ready("simple", headers=headers())
        described = await aio.get_model_metadata("simple", headers=headers())
        assert described["name"] == "simple"
        index = await aio.get_model_repository_index(headers=dict(ADMIN))
        assert len(index) > 10
        values = [np.full((2, 3), number, dtype=np.int32) for number in range(64)]
        ask = lambda each: aio.infer("identity_int32", [tensor("INPUT0", each)], headers=headers())
        for each, result in zip(values, await asyncio.gather(*map(ask, values))):
            assert_same(each, result.as_numpy("OUTPUT0"))
        # Large ones, which this client always allows to be compressed.
        large = np.arange(2 * MANY, dtype=np.float64).reshape(2, -1)
        for binary_data in (True, False):
            for encoding in (None, "gzip", "deflate"):
                result = await aio.infer(
                    "identity_fp64",
                    [tensor("INPUT0", large, binary_data)],
                    headers=headers(),
                    outputs=[wanted("OUTPUT0", binary_data=binary_data)],
                    request_compression_algorithm=encoding,
                    response_compression_algorithm=encoding,
                )
                assert_same(large, result.as_numpy("OUTPUT0"))
        try:
            await aio.infer("absent", simple(), headers=headers())
        except InferenceServerException as error:
            assert "Request for unknown model" in str(error)
        else:
            raise AssertionError("a model that is not there answers")


@check
def statistics():
    """statistics count rows and requests"""
    before = statistics_of("row_sum")
    rows = np.ones((3, 5), dtype=np.float32)
    infer("row_sum", [tensor("INPUT0", rows)])
    after = statistics_of("row_sum")
    assert after["inference_count"] - before["inference_count"] == 3, (before, after)
    assert after["execution_count"] - before["execution_count"] == 1
    succeeded = [counts["inference_stats"]["success"]["count"] for counts in (before, after)]
    assert succeeded[1] - succeeded[0] == 1, succeeded
    assert len(client.get_inference_statistics(headers=headers())["model_stats"]) > 10


def statistics_of(name):
    [only] = client.get_inference_statistics(name, headers=headers())["model_stats"]
    assert (only["name"], only["version"]) == (name, "1.0.0")
    return only


@check
def repository():
    """the repository's index; loading and unloading"""
    index = client.get_model_repository_index(headers=dict(ADMIN))
    [entry] = [entry for entry in index if entry["name"] == "simple"]
    assert (entry["version"], entry["state"]) == ("1.0.0", "READY")
    refused(lambda: client.load_model("absent", headers=dict(ADMIN)), "failed to load")
    client.load_model("simple", headers=dict(ADMIN))
    # An operator's key is needed.
    error = refused(lambda: client.unload_model("simple", headers=headers()))
    assert error.status() in ("401", "403"), error.status()
    assert client.is_model_ready("simple", headers=headers())


@check
def classes():
    """the greatest values, as classes"""
    outputs = [wanted("OUTPUT0", class_count=3), wanted("OUTPUT1", binary_data=False, class_count=2)]
    result = infer("simple", simple(), outputs=outputs)
    best = [as_class(text) for text in result.as_numpy("OUTPUT0").flat]
    assert best == [(16.0, 15), (15.0, 14), (14.0, 13)], best
    best = [as_class(text) for text in result.as_numpy("OUTPUT1").flat]
    assert best == [(14.0, 15), (13.0, 14)], best


def as_class(text):
    text = text.decode() if isinstance(text, bytes) else text
    value, index = text.split(":")[:2]
    return float(value), int(index)


@check
def parameters():
    """priorities, timeouts and others' parameters"""
    _, _, total, _ = numbers()
    for more in (
        {"priority": 1},
        {"timeout": 20_000_000},
        {"parameters": {"word": "a", "flag": True, "number": 1, "share": 0.5}},
    ):
        assert_same(total, infer("simple", simple(), **more).as_numpy("OUTPUT0"))


@check
def what_is_not_offered():
    """what is not offered is refused, and nothing is taken for something else"""
    refused(lambda: client.register_system_shared_memory("r", "/r", 64, headers=headers()))
    refused(lambda: client.register_cuda_shared_memory("r", b"handle", 0, 64, headers=headers()))
    refused(lambda: client.get_system_shared_memory_status(headers=headers()))
    refused(lambda: client.get_trace_settings(headers=headers()))
    refused(lambda: client.get_log_settings(headers=headers()))
    shared = simple()
    shared[0].set_shared_memory("r", 64)
    refused(lambda: infer("simple", shared))
    output = wanted("OUTPUT0")
    output.set_shared_memory("r", 64)
    refused(lambda: infer("simple", simple(), outputs=[output]))


run()
