"""The guest: `init` reads the assets, `predict` computes.

What `init` leaves in memory is the snapshot from which every instance starts. There is no network, no file and
no clock, and only pure Python packages can be imported.
"""

import struct

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import assets
from wit_world.imports.types import (
    Constraint_Length,
    Constraint_OneOf,
    Constraint_Range,
    Constraint_Stripped,
    Constraint_Text,
    Datatype,
    Field,
    LengthRange,
    NumberRange,
    PredictError_Failed,
    Signature,
    Tensor,
)

from sentiment import Sentiment

# The bytes that one call of `assets.read` returns at most.
CHUNK = 8 << 20

model = None


class Lifecycle(exports.Lifecycle):
    def init(self) -> Signature:
        global model
        try:
            model = Sentiment(read("words.tsv").decode(), float(assets.parameter("threshold")))
        except (TypeError, ValueError) as error:
            raise Err(str(error))
        model.score("run once before the snapshot")
        text = [
            Constraint_Text(),
            Constraint_Stripped(),
            Constraint_Length(LengthRange(1, 2000)),
        ]
        label = [Constraint_Text(), Constraint_OneOf(["negative", "positive"])]
        score = [Constraint_Range(NumberRange(0.0, 1.0))]
        return Signature(
            inputs=[field("text", "the text to judge", Datatype.BYTES, text)],
            outputs=[
                field("label", "positive from the threshold on", Datatype.BYTES, label),
                field("score", "how positive the text is", Datatype.FP32, score),
            ],
            max_batch_size=64,
        )


class Predict(exports.Predict):
    def predict(self, inputs: list[Tensor]) -> list[Tensor]:
        try:
            scores = [model.score(text) for text in texts(inputs[0])]
        except Exception as error:
            # An exception that leaves `predict` traps, which costs the instance.
            raise Err(PredictError_Failed(repr(error)))
        labels = [model.label(score).encode() for score in scores]
        rows = [len(scores)]
        packed = b"".join(struct.pack("<I", len(label)) + label for label in labels)
        return [
            Tensor("label", Datatype.BYTES, rows, packed),
            Tensor("score", Datatype.FP32, rows, struct.pack(f"<{len(scores)}f", *scores)),
        ]


def field(name: str, description: str, datatype: Datatype, constraints: list) -> Field:
    return Field(name, description, datatype, [], constraints, None)


def read(name: str) -> bytes:
    """An asset of the artifact."""
    size = assets.size(name)
    if size is None:
        raise ValueError(f"the artifact has no asset {name}")
    return b"".join(assets.read(name, at, CHUNK) for at in range(0, size, CHUNK))


def texts(tensor: Tensor) -> list[str]:
    """The elements of a tensor of byte strings: each is its length and its bytes."""
    found, at = [], 0
    while at < len(tensor.data):
        (length,) = struct.unpack_from("<I", tensor.data, at)
        found.append(bytes(tensor.data[at + 4 : at + 4 + length]).decode())
        at += 4 + length
    return found
