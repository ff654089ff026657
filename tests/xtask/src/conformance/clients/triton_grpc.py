"""tritonclient over gRPC, with threads, with asyncio and with streams."""

import asyncio
import queue

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from cases import (ADMIN_KEY, GRPC, KEY, MANY, assert_same, binary, check, model, numbers, refuses,
                   run)
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

HEADERS = {"x-api-key": KEY}
ADMIN = {"x-api-key": ADMIN_KEY}

# How long anything may take, in seconds.
LIMIT = 60

client = triton.InferenceServerClient(GRPC)


def refused(function, *words, about=""):
    return refuses(function, *words, kind=InferenceServerException, about=about)


def tensor(name, values):
    given = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    given.set_data_from_numpy(values)
    return given


def simple():
    one, other, _, _ = numbers()
    return [tensor("INPUT0", one), tensor("INPUT1", other)]


def wanted(name, **more):
    return triton.InferRequestedOutput(name, **more)


def infer(name, inputs, **more):
    return client.infer(name, inputs, headers=HEADERS, client_timeout=LIMIT, **more)


@check
def health():
    """health and readiness"""
    assert client.is_server_live(headers=HEADERS) and client.is_server_ready(headers=HEADERS)
    assert client.is_model_ready("simple", headers=HEADERS)
    assert client.is_model_ready("simple", "1", headers=HEADERS)


@check
def metadata():
    """metadata of server and model, configuration"""
    server = client.get_server_metadata(headers=HEADERS)
    assert server.name and server.version and server.extensions
    described = client.get_model_metadata("simple", headers=HEADERS)
    assert (described.name, list(described.versions)) == ("simple", ["1.0.0"])
    first = described.inputs[0]
    assert (first.name, first.datatype, list(first.shape)) == ("INPUT0", "INT32", [-1, 16])
    config = client.get_model_config("simple", headers=HEADERS).config
    assert (config.name, config.max_batch_size) == ("simple", 8)
    first = config.input[0]
    # 8 is TYPE_INT32.
    assert (first.name, first.data_type, list(first.dims)) == ("INPUT0", 8, [16])
    as_json = client.get_model_config("simple", headers=HEADERS, as_json=True)
    assert as_json["config"]["output"][1]["data_type"] == "TYPE_INT32"
    refused(lambda: client.get_model_metadata("absent", headers=HEADERS), "absent")


@check
def add_and_subtract():
    """simple"""
    _, _, total, difference = numbers()
    result = infer("simple", simple())
    assert_same(total, result.as_numpy("OUTPUT0"))
    assert_same(difference, result.as_numpy("OUTPUT1"))


@check
def more_than_a_batch():
    """more rows than the guest takes at once"""
    one, other, total, _ = (np.tile(rows, (9, 1)) for rows in numbers())
    result = infer("simple", [tensor("INPUT0", one), tensor("INPUT1", other)])
    assert_same(total, result.as_numpy("OUTPUT0"))


@check
def strings():
    """simple_string"""
    one, other, total, difference = numbers()
    as_text = lambda values: np.array(
        [str(value).encode() for value in values.flat], dtype=np.object_
    ).reshape(values.shape)
    inputs = [tensor("INPUT0", as_text(one)), tensor("INPUT1", as_text(other))]
    result = infer("simple_string", inputs)
    for output, values in (("OUTPUT0", total), ("OUTPUT1", difference)):
        assert [int(text) for text in result.as_numpy(output).flat] == list(values.flat)


@check
def every_datatype():
    """every datatype, to the bit"""
    for datatype, values in binary(ml_dtypes.bfloat16).items():
        result = infer(model(datatype), [tensor("INPUT0", values)])
        assert_same(values, result.as_numpy("OUTPUT0"))
        assert result.get_output("OUTPUT0").datatype == datatype


@check
def nothing_and_much():
    """tensors of no elements, and one as large as many servers would not take"""
    for values in (np.zeros((2, 0), np.float32), np.arange(1 << 20, dtype=np.float32)):
        values = values.reshape(2, -1)
        result = infer("identity_fp32", [tensor("INPUT0", values)])
        assert_same(values, result.as_numpy("OUTPUT0"))


@check
def outputs_and_ids():
    """outputs that are asked for, in that order, and ids"""
    _, _, total, difference = numbers()
    result = infer("simple", simple(), outputs=[wanted("OUTPUT1")], request_id="mine")
    assert result.as_numpy("OUTPUT0") is None
    assert_same(difference, result.as_numpy("OUTPUT1"))
    answer = result.get_response()
    assert (answer.id, answer.model_name, answer.model_version) == ("mine", "simple", "1.0.0")
    result = infer("simple", simple(), outputs=[wanted("OUTPUT1"), wanted("OUTPUT0")])
    assert [output.name for output in result.get_response().outputs] == ["OUTPUT1", "OUTPUT0"]
    assert_same(total, result.as_numpy("OUTPUT0"))


@check
def versions():
    """versions by number, by major and by range"""
    for version in ("1.0.0", "1", "^1.0"):
        result = infer("simple", simple(), model_version=version)
        assert result.get_response().model_version == "1.0.0"
    refused(lambda: infer("simple", simple(), model_version="9"))


@check
def errors():
    """what is wrong is refused in the words that programs look for"""
    error = refused(lambda: infer("absent", simple()), "Request for unknown model")
    assert error.status() == "StatusCode.NOT_FOUND", error.status()
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
        assert error.status() == "StatusCode.INVALID_ARGUMENT", error
    refused(lambda: infer("simple", simple(), outputs=[wanted("OUTPUT2")]), "OUTPUT2")
    error = refused(lambda: client.infer("simple", simple()))
    assert error.status() == "StatusCode.UNAUTHENTICATED", error.status()


@check
def compression():
    """gzip and deflate"""
    values = np.arange(2 * MANY, dtype=np.int64).reshape(2, -1)
    for algorithm in (None, "gzip", "deflate"):
        result = infer(
            "identity_int64", [tensor("INPUT0", values)], compression_algorithm=algorithm
        )
        assert_same(values, result.as_numpy("OUTPUT0"))


@check
def many_at_once():
    """many requests at once, each with its own answer"""
    answers = queue.Queue()
    values = [np.full((1, 3), number, dtype=np.int32) for number in range(64)]
    for index, each in enumerate(values):
        client.async_infer(
            "identity_int32",
            [tensor("INPUT0", each)],
            lambda result, error: answers.put((result, error)),
            request_id=str(index),
            headers=HEADERS,
            client_timeout=LIMIT,
        )
    seen = set()
    for _ in values:
        result, error = answers.get(timeout=LIMIT)
        assert error is None, error
        index = int(result.get_response().id)
        assert_same(values[index], result.as_numpy("OUTPUT0"))
        seen.add(index)
    assert len(seen) == len(values)


@check
def stream():
    """a stream: an answer for each request, and an error that does not end it"""
    answers = queue.Queue()
    with triton.InferenceServerClient(GRPC) as streaming:
        streaming.start_stream(lambda result, error: answers.put((result, error)), headers=HEADERS)
        values = [np.full((1, 3), number, dtype=np.int32) for number in range(32)]
        for index, each in enumerate(values):
            streaming.async_stream_infer(
                "identity_int32", [tensor("INPUT0", each)], request_id=str(index)
            )
            if index == 16:
                streaming.async_stream_infer("absent", simple(), request_id="bad")
        seen, wrong = set(), []
        for _ in range(len(values) + 1):
            result, error = answers.get(timeout=LIMIT)
            if error is not None:
                wrong.append(str(error))
                continue
            index = int(result.get_response().id)
            assert_same(values[index], result.as_numpy("OUTPUT0"))
            seen.add(index)
        assert len(seen) == len(values), seen
        assert len(wrong) == 1 and "Request for unknown model" in wrong[0], wrong


@check
def final_answers():
    """a stream whose caller wants to know which answer is the last of a request"""
    answers = queue.Queue()
    with triton.InferenceServerClient(GRPC) as streaming:
        streaming.start_stream(lambda result, error: answers.put((result, error)), headers=HEADERS)
        streaming.async_stream_infer(
            "simple", simple(), request_id="mine", enable_empty_final_response=True
        )
        while True:
            result, error = answers.get(timeout=LIMIT)
            assert error is None, error
            parameters = result.get_response().parameters
            if parameters["triton_final_response"].bool_param:
                break


@check
async def asyncio_client():
    """the client for asyncio, and its streams"""
    async with triton_aio.InferenceServerClient(GRPC) as aio:
        assert await aio.is_server_ready(headers=HEADERS)
        described = await aio.get_model_metadata("simple", headers=HEADERS)
        assert described.name == "simple"
        values = [np.full((2, 3), number, dtype=np.int32) for number in range(64)]
        ask = lambda each: aio.infer("identity_int32", [tensor("INPUT0", each)], headers=HEADERS)
        for each, result in zip(values, await asyncio.gather(*map(ask, values))):
            assert_same(each, result.as_numpy("OUTPUT0"))
        try:
            await aio.infer("absent", simple(), headers=HEADERS)
        except InferenceServerException as error:
            assert "Request for unknown model" in str(error)
        else:
            raise AssertionError("a model that is not there answers")

        async def requests():
            for each in values:
                yield {"model_name": "identity_int32", "inputs": [tensor("INPUT0", each)]}

        sums = []
        async for result, error in aio.stream_infer(requests(), headers=HEADERS):
            assert error is None, error
            sums.append(int(result.as_numpy("OUTPUT0")[0][0]))
        assert sorted(sums) == list(range(64)), sums


@check
def deadlines():
    """a caller's deadline"""
    # As much as no machine moves twice in a millisecond, with a guest in between.
    large = [tensor("INPUT0", np.zeros((1, 1 << 20), dtype=np.float32))]
    ask = lambda: client.infer("identity_fp32", large, headers=HEADERS, client_timeout=0.001)
    error = refused(ask)
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED", error.status()


@check
def statistics():
    """statistics count rows and requests"""
    before = statistics_of("row_sum")
    infer("row_sum", [tensor("INPUT0", np.ones((3, 5), dtype=np.float32))])
    after = statistics_of("row_sum")
    assert after.inference_count - before.inference_count == 3, (before, after)
    assert after.execution_count - before.execution_count == 1
    counts = [each.inference_stats.success.count for each in (before, after)]
    assert counts[1] - counts[0] == 1, counts


def statistics_of(name):
    [only] = client.get_inference_statistics(name, headers=HEADERS).model_stats
    assert (only.name, only.version) == (name, "1.0.0")
    return only


@check
def repository():
    """the repository's index; loading and unloading"""
    index = client.get_model_repository_index(headers=ADMIN).models
    [entry] = [entry for entry in index if entry.name == "simple"]
    assert (entry.version, entry.state) == ("1.0.0", "READY")
    refused(lambda: client.load_model("absent", headers=ADMIN), "failed to load")
    client.load_model("simple", headers=ADMIN)
    error = refused(lambda: client.unload_model("simple", headers=HEADERS))
    assert error.status() in ("StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED"), error
    assert client.is_model_ready("simple", headers=HEADERS)


@check
def classes():
    """the greatest values, as classes"""
    result = infer("simple", simple(), outputs=[wanted("OUTPUT0", class_count=3)])
    best = [text.decode().split(":")[:2] for text in result.as_numpy("OUTPUT0").flat]
    assert [(float(value), int(index)) for value, index in best] == [(16, 15), (15, 14), (14, 13)]


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
    refused(lambda: client.register_system_shared_memory("r", "/r", 64, headers=HEADERS))
    refused(lambda: client.get_trace_settings(headers=HEADERS))
    refused(lambda: client.get_log_settings(headers=HEADERS))
    shared = simple()
    shared[0].set_shared_memory("r", 64)
    refused(lambda: infer("simple", shared))
    output = wanted("OUTPUT0")
    output.set_shared_memory("r", 64)
    refused(lambda: infer("simple", simple(), outputs=[output]))


run()
