"""A client that knows nothing but an address: it asks the server what there is, and calls that."""

import base64

import grpc
from cases import GRPC, KEY, check, refuses, run
from grpc_requests import Client

NUMBERS = list(range(16))


class WithKey(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the key to every call, those about reflection as well."""

    def add(self, proceed, details, request):
        metadata = [*(details.metadata or []), ("x-api-key", KEY)]
        return proceed(details._replace(metadata=metadata), request)

    def intercept_unary_unary(self, proceed, details, request):
        return self.add(proceed, details, request)

    intercept_unary_stream = intercept_unary_unary
    intercept_stream_unary = intercept_unary_unary
    intercept_stream_stream = intercept_unary_unary


client = Client(GRPC, interceptors=[WithKey()])
INFERENCE = "inference.GRPCInferenceService"


@check
def services():
    """what there is"""
    names = client.service_names
    for name in (INFERENCE, "grpc.health.v1.Health"):
        assert name in names, names
    methods = client.service(INFERENCE).method_names
    for name in ("ModelInfer", "ModelStreamInfer", "ModelConfig", "RepositoryIndex"):
        assert name in methods, methods


@check
def health():
    """the health that orchestrators ask for"""
    answer = client.request("grpc.health.v1.Health", "Check", {"service": ""})
    assert answer["status"] == "SERVING", answer


@check
def inference():
    """inference, by descriptions alone"""
    asked = {
        "model_name": "simple",
        "id": "mine",
        "inputs": [
            tensor("INPUT0", NUMBERS),
            tensor("INPUT1", [1] * 16),
        ],
    }
    answer = client.request(INFERENCE, "ModelInfer", asked)
    assert (answer["id"], answer["model_version"]) == ("mine", "1.0.0"), answer
    raw = base64.b64decode(answer["raw_output_contents"][0])
    sums = [int.from_bytes(raw[at : at + 4], "little", signed=True) for at in range(0, 64, 4)]
    assert sums == [number + 1 for number in NUMBERS], sums
    # As a stream as well.
    answers = list(client.request(INFERENCE, "ModelStreamInfer", [asked, asked]))
    assert [each["infer_response"]["id"] for each in answers] == ["mine", "mine"], answers
    refuses(lambda: client.request(INFERENCE, "ModelInfer", {"model_name": "absent"}))


def tensor(name, data):
    return {"name": name, "datatype": "INT32", "shape": [1, 16], "contents": {"int_contents": data}}


run()
