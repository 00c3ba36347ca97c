"""Protocol buffers' messages, declared by the public numbers of their fields.

TensorFlow's own would import TensorFlow. Each declaration has a pool of its own, for TensorFlow may
be imported as well and know the same names. Fields that are not declared are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

FLOAT, INT32, INT64 = (
    FieldDescriptorProto.TYPE_FLOAT,
    FieldDescriptorProto.TYPE_INT32,
    FieldDescriptorProto.TYPE_INT64,
)
BYTES, TEXT = FieldDescriptorProto.TYPE_BYTES, FieldDescriptorProto.TYPE_STRING


def declare(
    package: str, messages: Mapping[str, Mapping[str, tuple[int, Any]]]
) -> dict[str, type[Message]]:
    """Return the classes of messages.

    Args:
        package: what they belong to.
        messages: message -> field -> its number and its type, or the name of a message; in a list
            where it is repeated.
    """
    file = FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            is_repeated = isinstance(kind, list)
            kind = kind[0] if is_repeated else kind
            field.label = field.LABEL_REPEATED if is_repeated else field.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = kind
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages
    }
