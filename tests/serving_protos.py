"""TensorFlow Serving's messages, as its .proto files define them, made by protobuf itself."""

from __future__ import annotations

import functools

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2
from tensorflow.core.framework import tensor_pb2

PACKAGE = "medseq_tf_tests"  # theirs is tensorflow.serving; the wire knows no package
OPTIONAL, REPEATED = 1, 3
STRING, MESSAGE = 9, 11


def _field(message, name, number, kind, type_name="", label=OPTIONAL):
    field = message.field.add(name=name, number=number, type=kind, label=label)
    if type_name:
        field.type_name = type_name


def _tensors(message, name, number):
    """A field `map<string, TensorProto>`."""
    entry = message.nested_type.add(name=name.capitalize() + "Entry")
    entry.options.map_entry = True
    _field(entry, "key", 1, STRING)
    _field(entry, "value", 2, MESSAGE, ".tensorflow.TensorProto")
    kind = f".{PACKAGE}.{message.name}.{entry.name}"
    _field(message, name, number, MESSAGE, kind, REPEATED)


@functools.cache
def messages():
    """The classes by name."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{PACKAGE}/serving.proto", package=PACKAGE, syntax="proto3"
    )
    file.dependency.extend([tensor_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name])
    spec = file.message_type.add(name="ModelSpec")
    _field(spec, "name", 1, STRING)
    _field(spec, "version", 2, MESSAGE, ".google.protobuf.Int64Value")
    _field(spec, "signature_name", 3, STRING)
    request = file.message_type.add(name="PredictRequest")
    _field(request, "model_spec", 1, MESSAGE, f".{PACKAGE}.ModelSpec")
    _tensors(request, "inputs", 2)
    _field(request, "output_filter", 3, STRING, label=REPEATED)
    response = file.message_type.add(name="PredictResponse")
    _tensors(response, "outputs", 1)
    _field(response, "model_spec", 2, MESSAGE, f".{PACKAGE}.ModelSpec")
    log = file.message_type.add(name="PredictLog")
    _field(log, "request", 1, MESSAGE, f".{PACKAGE}.PredictRequest")
    _field(log, "response", 2, MESSAGE, f".{PACKAGE}.PredictResponse")
    entry = file.message_type.add(name="PredictionLog")
    _field(entry, "predict_log", 6, MESSAGE, f".{PACKAGE}.PredictLog")
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    found = {m.name: pool.FindMessageTypeByName(f"{PACKAGE}.{m.name}") for m in file.message_type}
    return {name: message_factory.GetMessageClass(kind) for name, kind in found.items()}
