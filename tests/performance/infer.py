"""Runs the cases of the performance benchmark with onnxruntime.

    python infer.py MODELS

Speaks the protocol of the crate `cases`: lines of `<case> <variant> <seconds>` in, and for each the
times of the calls and the largest difference to the expected outputs as a line of JSON. The variant
is the number of threads; 0 is as many as there are cores.
"""

import json
import pathlib
import sys
import time

import numpy
import onnxruntime

WARM_UP_CALLS, MIN_CALLS = 2, 3


def read(folder, tensor):
    datatype = {"fp32": "f4", "int64": "i8"}[tensor["datatype"]]
    return numpy.fromfile(folder / tensor["file"], datatype).reshape(tensor["shape"])


def main(folder):
    cases = {case["case"]: case for case in json.loads((folder / "cases.json").read_text())}
    sessions = {}

    def session(model, threads):
        if (model, threads) not in sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = int(threads)
            file = str(folder / f"{model}.onnx")
            providers = ["CPUExecutionProvider"]
            sessions[model, threads] = onnxruntime.InferenceSession(file, options, providers)
        return sessions[model, threads]

    for line in sys.stdin:
        name, threads, seconds = line.split()
        case = cases[name]
        run = session(case["model"], threads).run
        inputs = {tensor["name"]: read(folder, tensor) for tensor in case["inputs"]}
        names = [tensor["name"] for tensor in case["outputs"]]
        for _ in range(WARM_UP_CALLS):
            run(names, inputs)
        times, begin = [], time.perf_counter()
        while len(times) < MIN_CALLS or time.perf_counter() - begin < float(seconds):
            start = time.perf_counter()
            outputs = run(names, inputs)
            times.append(time.perf_counter() - start)
        expected = [read(folder, tensor) for tensor in case["outputs"]]
        pairs = zip(outputs, expected, strict=True)
        difference = max(float(abs(output - wanted).max()) for output, wanted in pairs)
        print(json.dumps({"seconds": times, "difference": difference}), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
