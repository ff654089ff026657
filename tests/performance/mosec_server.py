"""mosec with onnxruntime, on the bytes of tensors.

    MODELS=… CASE=… WORKERS=2 python mosec_server.py --port …
"""

import os
import pathlib

import mosec

import peers


class Predict(mosec.Worker):
    def __init__(self):
        self.model = peers.TensorModel(pathlib.Path(os.environ["MODELS"]), os.environ["CASE"])

    def deserialize(self, data):
        return data

    def forward(self, data):
        return self.model.run(data)

    def serialize(self, data):
        return data


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Predict, num=int(os.environ["WORKERS"]))
    server.run()
