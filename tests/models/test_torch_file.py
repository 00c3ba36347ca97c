"""PyTorch's older files of tensors: equal to PyTorch, and nothing else that a pickle may do."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq_tf.errors import InputError
from medseq_tf.models import torch_file
from medseq_tf.models.torch_file import read_torch_file

GOLDEN = Path(__file__).with_name("torch_file_golden.pth")
MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
DICTIONARY = b"ccollections\nOrderedDict\n"


def pickled(value):
    return pickle.dumps(value, 2)


def inner(value):
    """A pickle without its beginning and its end, to stand within another."""
    return pickled(value)[2:-1]


def storage(key="1", count=6, kind=b"ctorch\nFloatStorage\n", what="storage", view=None):
    parts = [inner(what), kind, inner(key), inner("cpu"), inner(count), inner(view)]
    return b"(" + b"".join(parts) + b"tQ"


def tensor(shape=(2, 3), strides=(3, 1), offset=0, stored=None, hooks=DICTIONARY + b")R"):
    stored = storage() if stored is None else stored
    parts = [stored, inner(offset), inner(shape), inner(strides), b"\x89", hooks]
    return TENSOR + b"(" + b"".join(parts) + b"tR"


def dictionary(*items):
    body = b"".join(inner(name) + value for name, value in items)
    return b"\x80\x02" + DICTIONARY + b")R(" + body + b"u."


def document(described=None, keys=("1",), counts=(6,), end=b"", **parts):
    """A file of one tensor of the numbers 0 to 5, some of its parts otherwise."""
    described = dictionary(("weight", tensor())) if described is None else described
    head = [
        parts.get("magic", pickled(torch_file.MAGIC)),
        parts.get("version", pickled(1001)),
        parts.get("machine", pickled(MACHINE)),
        described,
        parts.get("keys_pickle", pickled(list(keys))),
    ]
    numbers = [
        struct.pack("<q", count) + np.arange(min(count, 9), dtype="<f4").tobytes()
        for count in counts
    ]
    return b"".join([*head, *numbers, end])


@pytest.fixture
def read(tmp_path):
    def from_bytes(content, **options):
        (tmp_path / "file.pth").write_bytes(content)
        return read_torch_file(tmp_path / "file.pth", **options)

    return from_bytes


def test_tensors_are_those_that_pytorch_wrote():
    found = read_torch_file(GOLDEN)
    with np.load(GOLDEN.with_suffix(".npz")) as expected:
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert isinstance(found[name], np.ndarray)
            assert found[name].dtype == value.dtype, name
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_file_by_hand(read):
    (weight,) = read(document()).values()
    np.testing.assert_array_equal(weight, np.arange(6, dtype="float32").reshape(2, 3))


# ------------------------------------------------------------------------ what a pickle may do


class Calls:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def attacks():
    command = "touch ran"
    system = inner(Calls(os.system, command))
    calls = {
        "system": system,
        "eval": inner(Calls(eval, f"__import__('os').system({command!r})")),
        "exec": inner(Calls(exec, "open('ran', 'w')")),
        "subprocess": inner(Calls(subprocess.call, ["touch", "ran"])),
        "nested": inner({"a": [({"b": Calls(os.system, command)},)]}),
        "getattr": b"cbuiltins\ngetattr\n",
        "inst": b"(" + inner(command) + b"iposix\nsystem\n",
        "obj": b"(cposix\nsystem\n" + inner(command) + b"o",
        "newobj": b"cposix\nsystem\n" + inner((command,)) + b"\x81",
        "newobj_ex": b"cposix\nsystem\n" + inner((command,)) + b"}\x92",
        "stack_global": b"\x8c\x05posix\x8c\x06system\x93" + inner((command,)) + b"R",
        "extension": b"\x82\x01",
        "text persistent id": b"Pname\n",
        "dictionary that is called": DICTIONARY + inner((command,)) + b"R",
        "storage that is called": b"ctorch\nFloatStorage\n)R",
        "other name of torch": b"ctorch\nload\n" + inner(("ran",)) + b"R",
    }
    places = {
        "tensor": lambda call: document(dictionary(("weight", call))),
        "hooks": lambda call: document(dictionary(("weight", tensor(hooks=call)))),
        "storage": lambda call: document(dictionary(("weight", tensor(stored=call)))),
        "first": lambda call: document(magic=b"\x80\x02" + call + b"."),
        "machine": lambda call: document(machine=b"\x80\x02" + call + b"."),
        "attributes": lambda call: document(dictionary(("w", tensor()))[:-1] + call + b"b."),
    }
    return [
        pytest.param(make(call), id=f"{name} as {place}")
        for name, call in calls.items()
        for place, make in places.items()
    ]


@pytest.mark.parametrize("content", attacks())
def test_nothing_is_ever_called(read, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        read(content)
    assert "is no file of PyTorch tensors that can be read (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


def test_the_attacks_are_real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickled(Calls(os.system, "touch ran")))
    assert (tmp_path / "ran").exists()


def test_a_name_is_shown_without_what_it_does_to_a_terminal(read):
    with pytest.raises(InputError, match=r"it names os \\x1b\[31msystem, which"):
        read(document(dictionary(("weight", b"cos\n\x1b[31msystem\n"))))


# ------------------------------------------------------------------- damaged, huge, of another kind


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
        (document(magic=pickled(7)), "does not begin as one of PyTorch's older format"),
        (document(version=pickled(1000)), "does not begin"),
        (document(magic=pickle.dumps(torch_file.MAGIC, 4)), "protocol 4, expected 2"),
        (document(machine=pickled({"little_endian": False})), "another byte order"),
        (document(machine=pickled(5)), "damaged"),
        (document(pickled([1])), "no dictionary of tensors"),
        (document(pickled({"epoch": 5})), "epoch in it is no tensor"),
        (document(pickled({5: 5})), "something else stands where a str is expected"),
        (document(keys=("1", "2")), "its storages are not those"),
        (document(keys=()), "its storages are not those"),
        (document(keys=(1,)), "where a str is expected"),
        (document(counts=(5,)), "not as long as it is said"),
        (document(end=b"x"), "something after its last storage"),
        (document(dictionary(("w", tensor((2, 4))))), "reaches beyond its storage"),
        (document(dictionary(("w", tensor(offset=1)))), "reaches beyond its storage"),
        (document(dictionary(("w", tensor(strides=(4, 1))))), "reaches beyond its storage"),
        (document(dictionary(("w", tensor((2**28, 0), (0, 0))))), "reaches beyond its storage"),
        (document(dictionary(("w", tensor((2**27, 2), (0, 0))))), "reaches beyond its storage"),
        (document(dictionary(("w", tensor((2**60,), (0,))))), "a size that is none"),
        (document(dictionary(("w", tensor((-2, -3))))), "a size that is none"),
        (document(dictionary(("w", tensor(offset=-1)))), "a size that is none"),
        (document(dictionary(("w", tensor((True,), (1,))))), "a size that is none"),
        (document(dictionary(("w", tensor((2, 3), (1,))))), "impossible axes"),
        (document(dictionary(("w", tensor((1,) * 9, (1,) * 9)))), "impossible axes"),
        (document(dictionary(("w", tensor([2, 3])))), "where a tuple is expected"),
        (document(dictionary(("w", tensor(stored=inner(5))))), "where a storage is expected"),
        (document(dictionary(("w", tensor(stored=storage(count=2**40))))), "a size that is none"),
        (document(dictionary(("w", tensor(stored=storage(view=5))))), "storage of another kind"),
        (document(dictionary(("w", tensor(stored=storage(what="module"))))), "of another kind"),
        (document(dictionary(("w", tensor(stored=storage(kind=TENSOR))))), "of another kind"),
        (
            document(dictionary(("a", tensor()), ("b", tensor(stored=storage(count=7))))),
            "two storages of one name",
        ),
        (document(b"\x80\x02" + b"(" * 50 + b"."), "damaged"),
        (document(b"\x80\x02" + inner(1) + b"0" + b"."), "the instruction POP, which"),
    ],
)
def test_what_is_no_file_of_tensors_is_one_line(read, content, reason):
    with pytest.raises(InputError) as caught:
        read(content)
    assert "is no file of PyTorch tensors that can be read (" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_storage_that_is_said_to_be_huge_takes_no_memory(read):
    huge = tensor((2**28,), (1,), stored=storage(count=2**28))
    with pytest.raises(InputError, match="not as long as it is said"):
        read(document(dictionary(("w", huge)), counts=(2**28,)))


def test_many_tensors_of_one_storage_are_bounded_together(read, monkeypatch):
    same = [(f"w{number}", b"h\xff") for number in range(200)]
    content = document(dictionary(("w", tensor() + b"q\xff"), *same))
    assert len(read(content)) == 201
    assert len(content) < 4000 < 201 * 6 * 4
    monkeypatch.setattr(torch_file, "LARGEST", 4000)
    with pytest.raises(InputError, match=r"its tensors take more than 4,000 bytes"):
        read(content)
    with pytest.raises(InputError, match=r"is larger than 4,000 bytes"):
        read(content + bytes(4000))


def test_instructions_are_counted(read, monkeypatch):
    monkeypatch.setattr(torch_file, "MOST_INSTRUCTIONS", 1000)
    with pytest.raises(InputError, match="more than 1,000 instructions"):
        read(document(pickled(list(range(2000)))))


def test_deep_nesting_is_no_recursion(read):
    deep = b"\x80\x02" + b")" + b"\x85" * 50_000 + b"."
    with pytest.raises(InputError, match="no dictionary of tensors"):
        read(document(deep))
    kind = b")" + b"\x85" * 50_000
    with pytest.raises(InputError, match="a storage of another kind"):
        read(document(dictionary(("w", tensor(stored=storage(kind=kind))))))
    with pytest.raises(InputError, match="where a str is expected"):
        read(document(keys=(), keys_pickle=b"\x80\x02](" + kind + kind + b"e."))
    itself = b"\x80\x02}q\x00" + inner("me") + b"h\x00s."
    with pytest.raises(InputError, match="me in it is no tensor"):
        read(document(itself))


@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.9, 0.999])
def test_a_file_cut_short(read, share):
    content = GOLDEN.read_bytes()
    with pytest.raises(InputError, match="is no file of PyTorch tensors"):
        read(content[: int(share * len(content))])


def test_another_file_is_refused_before_it_is_read(read, monkeypatch):
    content = document()
    assert list(read(content, sha256=hashlib.sha256(content).hexdigest())) == ["weight"]
    monkeypatch.setattr(torch_file, "_tensors", lambda file: pytest.fail("was read"))
    with pytest.raises(
        InputError, match=r"is not the file it should be: its SHA-256 is [0-9a-f]{64}"
    ):
        read(content, sha256="0" * 64)


def test_a_missing_file_a_folder_and_no_path(tmp_path):
    for path in (tmp_path / "missing.pth", tmp_path, tmp_path / "with\0nul.pth"):
        with pytest.raises(InputError, match="cannot be read: "):
            read_torch_file(path)


@pytest.fixture(scope="module")
def refused_or_tensors(tmp_path_factory):
    path = tmp_path_factory.mktemp("changed") / "file.pth"

    def check(content):
        path.write_bytes(content)
        try:
            found = read_torch_file(path)
        except InputError:
            return
        assert all(isinstance(value, np.ndarray) for value in found.values())

    return check


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_changed_ends_in_tensors_or_one_line(refused_or_tensors, data):
    content = bytearray(data.draw(st.sampled_from([GOLDEN.read_bytes(), document()])))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    refused_or_tensors(bytes(content))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_is_pickled_ends_in_tensors_or_one_line(refused_or_tensors, program):
    refused_or_tensors(document(b"\x80\x02" + program + b"."))
