"""The check of a SavedModel before it is loaded: is its graph arithmetic and no more?

A SavedModel is a program. TensorFlow has operations that read and write files, call Python and open
connections, and runs some of them as soon as a model is loaded. An export of this package has none
but those that keep its weights, and these only where weights are saved and restored. How long a
program runs, and how much memory it takes, cannot be seen in its graph.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import op_def_registry

from medseq_tf.errors import InputError

LARGEST = 2**31
"""Bytes of a graph: what its format allows."""

_WITH_STATE = {
    "Assert",
    "AssignVariableOp",
    "DisableCopyOnRead",
    "If",
    "ReadVariableOp",
    "StatefulPartitionedCall",
    "VarHandleOp",
    "VarIsInitializedOp",
    "While",
}
"""Those of TensorFlow's operations with a state, or an effect, that exports have."""

_KEEPERS = {"MergeV2Checkpoints", "RestoreV2", "SaveV2"}
"""What keeps weights; each can be given any file's name."""

_WITHOUT_STATE_YET_NOT_PURE = {
    "GenerateVocabRemapping",
    "ImmutableConst",
    "InitializeTableFromTextFile",
    "MatchingFiles",
    "PyFuncStateless",
    "ReadFile",
}
"""What reads files or calls Python without TensorFlow calling that a state."""

_KINDS_WITHOUT_STATE_YET_NOT_PURE = ("Dataset", "Debug")
"""Stand in the names of operations that read or write files or open connections."""


def check_saved_model(folder: str | os.PathLike) -> None:
    """Raise an InputError for a SavedModel that is damaged, or does more than to compute."""
    path = Path(folder) / "saved_model.pb"
    if path.stat().st_size > LARGEST:
        raise InputError(f"{folder}: its graph has more than {LARGEST // 2**20} MiB")
    model = SavedModel()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise InputError(f"{folder}: its saved_model.pb is damaged or cut short") from None
    graphs = [graph for graph in model.meta_graphs if graph.object_graph_def.nodes]
    if not graphs or len(graphs) != len(model.meta_graphs):
        raise InputError(f"{folder}: is a SavedModel, but none that this version's export wrote")
    for meta in graphs:
        for operation in _refused(meta.graph_def, meta.object_graph_def):
            raise InputError(
                f"{folder}: is refused: its graph holds {operation[:60]}, which no export has and "
                "which could read or write files or run other programs"
            )


def _refused(graph: GraphDef, objects) -> Iterator[str]:
    """Yield the names of operations that are not to be run."""
    functions = {f.signature.name: f.node_def for f in graph.library.function}
    run = _reached(functions, _entries(objects))
    for name, nodes in [("", graph.node), *functions.items()]:
        for node in nodes:
            may_keep = name not in run and node.op in _KEEPERS
            if node.op not in functions and not may_keep and not _is_pure(node.op):
                yield node.op


def _entries(objects) -> set[str]:
    """Return the functions that loading a model, or asking it, can call."""
    names = set(objects.concrete_functions)
    for item in objects.nodes:
        names |= {item.bare_concrete_function.concrete_function_name}
        names |= set(item.function.concrete_functions)
    return names


def _reached(functions: dict[str, Iterable[NodeDef]], entries: set[str]) -> set[str]:
    """Return those of the functions that the entries, and what they call, can call."""
    waiting, reached = [name for name in entries if name in functions], set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            called = {called for node in functions[name] for called in _called(node)}
            waiting += [other for other in called if other in functions]
    return reached


def _called(node: NodeDef) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)


def _is_pure(operation: str) -> bool:
    definition = op_def_registry.get(operation)
    if definition is None or operation in _WITHOUT_STATE_YET_NOT_PURE:
        return False
    if any(kind in operation for kind in _KINDS_WITHOUT_STATE_YET_NOT_PURE):
        return False
    return not definition.is_stateful or operation in _WITH_STATE
