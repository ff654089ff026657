"""What all clients are asked to do: values of every datatype, and how a program tells what came of it.

A program of this folder is run with the addresses of the server's REST and gRPC endpoints, and with
keys in KEY and ADMIN_KEY. Its checks are functions that are listed by `check`; each is run, whatever
came of the others, and the program fails if one has failed.
"""

import asyncio
import inspect
import os
import sys
import traceback

import numpy as np

REST, GRPC = sys.argv[1:3]
KEY, ADMIN_KEY = os.environ["KEY"], os.environ["ADMIN_KEY"]

# Some of whose tensors are large enough that servers and clients compress or split them.
MANY = 20_000

CHECKS = []


def check(function):
    """List a function, which may be a coroutine's, as a check."""
    CHECKS.append(function)
    return function


def run():
    """Do all checks, and end the program."""
    failed = 0
    for function in CHECKS:
        name = function.__doc__ or function.__name__
        try:
            outcome = function()
            if inspect.iscoroutine(outcome):
                asyncio.run(outcome)
        except Exception:
            failed += 1
            traceback.print_exc(file=sys.stdout)
            print(f"  FAILS  {name}")
        else:
            print(f"  ok     {name}")
    print(f"{os.path.basename(sys.argv[0])}: {len(CHECKS) - failed} of {len(CHECKS)} checks hold")
    sys.stdout.flush()
    sys.exit(1 if failed else 0)


def refuses(function, *words, kind=Exception, about=""):
    """The error of a call that has to be refused, in these words."""
    try:
        answer = function()
    except kind as error:
        text = str(error)
        for word in words:
            assert word in text, f"{word!r} is not in {text!r}"
        return error
    raise AssertionError(f"it is not refused: {about or answer}")


def bits(values, unsigned, kind):
    """Numbers by their bits, two rows of them."""
    return np.array(values, dtype=unsigned).view(kind).reshape(2, -1)


def integers(kind):
    least, most = np.iinfo(kind).min, np.iinfo(kind).max
    return np.array([[least, most, 0, 1], [2, 3, least + 1, most - 1]], dtype=kind)


def texts(values):
    return np.array(values, dtype=np.object_).reshape(2, -1)


def binary(brain=None):
    """By datatype, every kind of value there is: zeros of both signs, the largest and the smallest, what
    is infinite, and what is no number, quiet and with a message. BF16 needs somebody's type for it."""
    cases = {
        "BOOL": np.array([[True, False, True], [False, False, True]]),
        "FP16": bits([0, 0x8000, 1, 0x7BFF, 0x3C00, 0x7C00, 0xFC00, 0x7E2A], np.uint16, np.float16),
        "FP32": bits(
            [0, 1 << 31, 1, 0x7F7FFFFF, 0x3F800001, 0x7F800000, 0xFF800000, 0x7FC0002A],
            np.uint32,
            np.float32,
        ),
        "FP64": bits(
            [0, 1 << 63, 1, (0x7FF << 52) - 1, 0x3FF0000000000001, 0x7FF << 52, 0xFFF << 52,
             (0x7FF8 << 48) + 42],
            np.uint64,
            np.float64,
        ),
        "BYTES": texts([b"", b"\x00\xff", "häß".encode(), b"a" * MANY]),
    }
    for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64):
        cases[np.dtype(kind).name.upper()] = integers(kind)
    if brain is not None:
        # Quiet ones only: some types for it make no others.
        cases["BF16"] = bits(
            [0, 0x8000, 1, 0x7F7F, 0x3F80, 0x7F80, 0xFF80, 0x7FC0], np.uint16, brain
        )
    return cases


def json():
    """The same, as far as JSON can say it: numbers, and byte strings that are texts."""
    cases = {name: values for name, values in binary().items() if name != "FP16"}
    for name in ("FP32", "FP64"):
        finite = cases[name][np.isfinite(cases[name])]
        cases[name] = finite[:4].reshape(2, -1)
    cases["BYTES"] = texts([b"", b"\x00", "häß".encode(), b"a" * MANY])
    return cases


def model(datatype):
    """The model that answers with what it is asked."""
    return f"identity_{datatype.lower()}"


def assert_same(was, is_):
    """The same to the bit: NaN is what it was, and zeros have their signs."""
    assert is_ is not None, "there is no such output"
    assert was.shape == is_.shape, (was.shape, is_.shape)
    if was.dtype == np.object_:
        assert [bytes(value) for value in was.flat] == [as_bytes(value) for value in is_.flat]
    else:
        assert was.dtype == is_.dtype, (was.dtype, is_.dtype)
        assert was.tobytes() == is_.tobytes(), (was, is_)


def as_bytes(value):
    return value.encode() if isinstance(value, str) else bytes(value)


def numbers():
    """What `simple` is asked by published programs, and what it answers."""
    one = np.arange(16, dtype=np.int32).reshape(1, 16)
    other = np.ones((1, 16), dtype=np.int32)
    return one, other, one + other, one - other
