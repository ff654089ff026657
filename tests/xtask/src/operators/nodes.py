"""Runs the node tests of ONNX by the program of the SDK, and compares the outputs as ONNX's own runner does.

    nodes.py PROGRAM FOLDER PASSED PAGE [--write]

FOLDER is for files of the cases. PASSED lists the cases that pass: none of them may fail. PAGE is the page of the
book with their numbers by operator. With --write, both are written anew.
"""

import argparse
import collections
import pathlib
import queue
import re
import subprocess
import sys
import threading
import warnings

import numpy
import onnx
from onnx import helper, numpy_helper

warnings.simplefilter("ignore")

# The longest that a case may take.
SECONDS = 60

# Cases whose operator has been expanded to simpler ones.
EXPANDED = re.compile(r"_expanded(_ver\d+)?$")

# Follows the name of a case that passes only with constants in the place of its inputs but the first.
CONSTANTS = " (constants)"

# Types by their name in tract.
TYPES = {
    "F16": "float16", "F32": "float32", "F64": "float64", "Bool": "bool",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
}

HEAD = """# Operators of ONNX

ONNX publishes tests of its operators: graphs of one node, and the same operators expanded to simpler ones, with inputs and
outputs. `cargo xtask operators` runs them through the SDK for guests and compares the outputs with ONNX's own tolerances.
It does so natively: the code is the one that the guest of `guesthouse pack --onnx` has, but it runs outside of the sandbox,
where two thousand graphs take half a minute. Of the rules for graphs that are served, only those on types apply: the first
dimension of these tests is no batch. A test that fails is tried again with all inputs but the first as constants: axes, shapes
and sizes are inputs in these tests, and constants in most models.

An operator of which only some tests pass lacks some attributes or types. Nothing passes whose inputs or outputs are
strings, sequences, optional values, or numbers of fewer than 8 bits or in 8-bit floating point.

"""


def main():
    parser = argparse.ArgumentParser()
    for argument in ("program", "folder", "passed", "page"):
        parser.add_argument(argument, type=pathlib.Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    cases = collect()
    passed, failed, different = run(given.program, given.folder, cases)
    (given.folder / "failed.txt").write_text("".join(f"{name}: {why}\n" for name, why in sorted(failed.items())))
    print(f"{len(passed)} of {len(cases)} node tests pass; why others do not is in {given.folder}/failed.txt")
    known = given.passed.read_text().splitlines() if given.passed.exists() else []
    lines = sorted(name + (CONSTANTS if with_constants else "") for name, with_constants in passed.items())
    # What passes as it is passes with constants, too.
    lost = [line for line in known if line not in lines and line.removesuffix(CONSTANTS) not in lines]
    for line in lost:
        why = failed.get(line.removesuffix(CONSTANTS), "it needs constants, or is no test any more")
        print(f"{line} does not pass any more: {why}")
    page = HEAD + table(cases, passed, different)
    if given.write and not lost:
        given.passed.write_text("".join(f"{line}\n" for line in lines))
        given.page.write_text(page)
    elif given.page.read_text() != page:
        print("the page of operators is outdated: run `cargo xtask operators --write`")
        lost.append(given.page.name)
    sys.exit(1 if lost else 0)


def collect():
    """All cases by name."""
    from onnx.backend.test.case.node import collect_testcases

    return {case.name: case for case in collect_testcases(None)}


def run(program, folder, cases):
    """The cases that pass, with whether they need constants, why the others fail, and which of these have
    other outputs."""
    passed, failed, different = {}, {}, []
    runner = Runner(program)
    for name, case in cases.items():
        try:
            attempt(runner, folder / name, case, constants=False)
            passed[name] = False
        except Failure as failure:
            try:
                attempt(runner, folder / f"{name}.constants", case, constants=True)
                passed[name] = True
            except Failure:
                failed[name] = str(failure)
                if isinstance(failure, Different):
                    different.append(name)
    return passed, failed, different


def attempt(runner, folder, case, constants):
    """Run a case as it is, or with all inputs but the first as constants."""
    for place, (inputs, outputs) in enumerate(case.data_sets):
        files = folder / str(place)
        write(files, case.model, inputs, constants)
        compare(runner.answer(files), outputs, case)


class Failure(Exception):
    """A case does not pass."""


class Different(Failure):
    """The outputs are others than those of the case."""


class Runner:
    """The program, started again when it ends or does not answer."""

    def __init__(self, program):
        self.program = program
        self.process = None

    def answer(self, files):
        if self.process is None or self.process.poll() is not None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen([self.program], text=True, **pipes)
        print(files, file=self.process.stdin, flush=True)
        line = self.line(self.process.stdout)
        if line is None:
            self.process.kill()
            self.process.wait()
            raise Failure(f"no answer in {SECONDS} s")
        if not line:
            raise Failure(f"the program ends with {self.process.wait()}")
        if line.startswith("error "):
            raise Failure(line[len("error ") :].strip())
        return [array(text) for text in line.split()]

    @staticmethod
    def line(stream):
        lines = queue.Queue()
        threading.Thread(target=lambda: lines.put(stream.readline()), daemon=True).start()
        try:
            return lines.get(timeout=SECONDS)
        except queue.Empty:
            return None


def write(files, model, inputs, constants):
    """The files of a case."""
    names = [value.name for value in model.graph.input]
    tensors = []
    for name, value in zip(names, inputs):
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        if not isinstance(value, (numpy.ndarray, numpy.generic)) or value.dtype.kind in "OSU":
            raise Failure(f"input {name} is no tensor of numbers")
        value = numpy.asarray(value)
        tensor = onnx.TensorProto(name=name, dims=value.shape, raw_data=value.tobytes())
        tensor.data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
        tensors.append(tensor)
    if constants:
        if len(tensors) < 2:
            raise Failure("there are no other inputs")
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        changed.graph.initializer.extend(tensors[1:])
        del changed.graph.input[1:]
        model, tensors = changed, tensors[:1]
    files.mkdir(parents=True, exist_ok=True)
    (files / "model.onnx").write_bytes(model.SerializeToString())
    graph = helper.make_graph([], "inputs", [], [], tensors)
    (files / "inputs.onnx").write_bytes(helper.make_model(graph).SerializeToString())


def array(text):
    """An output of the program."""
    elements, shape, data = text.split(":")
    if elements not in TYPES:
        raise Failure(f"an output has elements of type {elements}")
    sizes = [int(size) for size in shape.split("x") if size]
    return numpy.frombuffer(bytes.fromhex(data), TYPES[elements]).reshape(sizes)


def compare(found, expected, case):
    """The comparison of `onnx.backend.test.runner`."""
    if len(found) != len(expected):
        raise Failure(f"{len(found)} outputs and not {len(expected)}")
    for mine, theirs in zip(found, expected):
        if isinstance(theirs, onnx.TensorProto):
            theirs = numpy_helper.to_array(theirs)
        if not isinstance(theirs, (numpy.ndarray, numpy.generic)):
            raise Failure("an output is no tensor")
        if mine.dtype != theirs.dtype:
            raise Failure(f"an output is {mine.dtype} and not {theirs.dtype}")
        try:
            assert mine.shape == theirs.shape, f"shape {mine.shape} and not {theirs.shape}"
            numpy.testing.assert_allclose(mine, theirs, rtol=case.rtol, atol=case.atol)
        except AssertionError as error:
            raise Different(" ".join(str(error).split())[:200]) from error


def table(cases, passed, different):
    """Numbers of cases by operator, as Markdown."""
    counts = collections.defaultdict(lambda: [0, 0])
    for name, case in cases.items():
        base = cases.get(EXPANDED.sub("", name), case)
        node = base.model.graph.node[-1]
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        counts[operator][0] += name in passed
        counts[operator][1] += 1
    constants = sum(passed.values())
    groups = {"All tests pass": [], "Some tests pass": [], "No test passes": []}
    for operator, (good, total) in sorted(counts.items()):
        if good == total:
            groups["All tests pass"].append(f"`{operator}` ({total})")
        elif good:
            groups["Some tests pass"].append(f"`{operator}` ({good} of {total})")
        else:
            groups["No test passes"].append(f"`{operator}` ({total})")
    text = f"{len(passed)} of {len(cases)} tests pass, with PyPI's `onnx` {onnx.__version__}: "
    text += f"{len(passed) - constants} as they are, and {constants} with constants.\n"
    for title, operators in groups.items():
        text += f"\n## {title}\n\n{len(operators)} operators, with the numbers of their tests:\n"
        text += ", ".join(operators) + ".\n"
    text += "\n## Different outputs\n\nThese tests run and give other outputs than ONNX asks for, so that golden examples would"
    text += f" fail:\n{', '.join(f'`{name}`' for name in sorted(different))}.\n"
    return text


if __name__ == "__main__":
    main()
