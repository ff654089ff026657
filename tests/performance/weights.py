"""Readers of weights: safetensors, and checkpoints of PyTorch without PyTorch."""

import collections
import json
import pickle
import struct

import numpy


def read_safetensors(content):
    """The tensors of a safetensors file, by name."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    datatypes = {"F32": numpy.float32, "I64": numpy.int64}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = numpy.frombuffer(content[8 + length + begin : 8 + length + end], datatypes[entry["dtype"]])
        tensors[name] = data.reshape(entry["shape"])
    return tensors


class _Storage:
    def __init__(self, datatype, key):
        self.datatype, self.key, self.elements = datatype, key, None


class _Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self):
        elements = self.storage.elements[self.offset :]
        size = elements.itemsize
        strides = [stride * size for stride in self.strides]
        return numpy.lib.stride_tricks.as_strided(elements, self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries of tensors, and rejects every other class."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        datatypes = {"FloatStorage": numpy.float32, "LongStorage": numpy.int64}
        if module == "torch" and name in datatypes:
            return datatypes[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")

    def persistent_load(self, saved):
        kind, datatype, key = saved[:3]
        assert kind == "storage", kind
        return self.storages.setdefault(key, _Storage(datatype, key))


def read_checkpoint(file):
    """The tensors of a checkpoint in PyTorch's format before version 1.6, by name."""
    assert pickle.load(file) == 0x1950A86A20F9469CFC6C
    assert pickle.load(file) == 1001
    assert pickle.load(file)["little_endian"]
    unpickler = _Unpickler(file)
    tensors = unpickler.load()
    for key in pickle.load(file):
        storage = unpickler.storages[key]
        (count,) = struct.unpack("<Q", file.read(8))
        size = numpy.dtype(storage.datatype).itemsize
        storage.elements = numpy.frombuffer(file.read(count * size), storage.datatype)
    return {name: tensor.array() for name, tensor in tensors.items()}
