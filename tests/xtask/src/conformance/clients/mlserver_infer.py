"""The command `mlserver infer`: a file of requests to a file of answers."""

import json
import os
import subprocess
import sys
import tempfile

from cases import KEY, REST, check, run

# Requests of the file.
REQUESTS = 50


def infer(folder, *more):
    """The answers to requests of one row each, in their order."""
    asked, answered = os.path.join(folder, "asked"), os.path.join(folder, "answered")
    with open(asked, "w") as file:
        for number in range(REQUESTS):
            rows = {"INPUT0": [number] * 16, "INPUT1": list(range(16))}
            inputs = [
                {"name": name, "shape": [1, 16], "datatype": "INT32", "data": data}
                for name, data in rows.items()
            ]
            print(json.dumps({"id": f"mine-{number}", "inputs": inputs}), file=file)
    command = [os.path.join(os.path.dirname(sys.executable), "mlserver"), "infer"]
    command += ["--url", REST, "--model-name", "simple", "--input-data-path", asked]
    command += ["--output-data-path", answered, "--request-headers", f"X-API-Key: {KEY}", *more]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    with open(answered) as file:
        answers = [json.loads(line) for line in file]
    assert len(answers) == REQUESTS, outcome.stdout + outcome.stderr
    return sorted(answers, key=lambda answer: answer["parameters"]["batch_index"])


def check_answers(answers):
    for number, answer in enumerate(answers):
        assert answer["id"] == f"mine-{number}", answer
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        assert outputs["OUTPUT0"] == [number + each for each in range(16)], answer
        assert outputs["OUTPUT1"] == [number - each for each in range(16)], answer


@check
def one_by_one():
    """each request by itself"""
    with tempfile.TemporaryDirectory() as folder:
        check_answers(infer(folder))


@check
def in_batches():
    """several requests in one, as JSON and binary"""
    for more in ([], ["--binary-data"]):
        with tempfile.TemporaryDirectory() as folder:
            check_answers(infer(folder, "--batch-size", "4", "--workers", "3", *more))


run()
