"""Hostile pickles: whatever they ask for, nothing is executed and the answer is a DataError."""

from __future__ import annotations

import os
import pickle
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.samples import cifar_files, python2_pickle, write_tar

from prunus.data import load_data
from prunus.data.plain_pickle import PickledArray, read_plain_pickle
from prunus.errors import DataError


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_plain_data_comes_out_as_it_went_in() -> None:
    value = {
        "a": [1, -2, 3.5, None, True, False, 2**40],
        b"b": (1, (2,), (), (1, 2), (1, 2, 3, 4)),
        "c": {},
        7: "ü" * 300,
    }
    for protocol in (3, 4, 5):
        assert read_plain_pickle(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "f4", "b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_out_as_they_went_in(dtype: str, order: Any) -> None:
    array = np.array(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
    again = read_plain_pickle(pickle.dumps(array, protocol=4))
    assert isinstance(again, PickledArray)
    assert again.array is not None
    assert np.array_equal(again.array, array)


def test_python_2_strings_are_bytes() -> None:
    assert read_plain_pickle(python2_pickle({b"\xff\x00": [b"x", 3]})) == {b"\xff\x00": [b"x", 3]}


def hostile_pickles(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    array_state = b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R\x89](K\x01K\x02etb"
    begin = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    u1 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89"
    return {
        "os.system": pickle.dumps(Calls(os.system, command)),
        "os.system, protocol 0": pickle.dumps(Calls(os.system, command), protocol=0),
        "eval": pickle.dumps(Calls(eval, f"open({str(marker)!r}, 'w')")),
        "inside a batch": pickle.dumps({b"data": Calls(os.system, command)}),
        "inst": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nU" + bytes([len(command)]) + command.encode() + b"o.",
        "newobj": b"\x80\x02cbuiltins\nlist\n)\x81.",
        "getattr": pickle.dumps(Calls(getattr, "x", "upper")),
        "numpy.load": b"\x80\x02cnumpy\nload\nU\x04/etc\x85R.",
        "ndarray called": b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",
        "another class": begin.replace(b"numpy\nndarray", b"os\nsystem") + b".",
        "array without state used as a function": begin + b")R.",
        "object array": begin + array_state + b".",
        "pickled object array": pickle.dumps(np.array([{"a": 1}], dtype=object), protocol=4),
        "structured dtype": pickle.dumps(np.zeros(2, dtype=[("a", "u1"), ("b", "O")]), protocol=4),
        "date dtype": pickle.dumps(np.zeros(2, dtype="M8[s]"), protocol=4),
        "dtype from a list": b"\x80\x02cnumpy\ndtype\n]\x85R.",
        "state of a function": b"\x80\x02cnumpy\ndtype\n}(U\x08__code__K\x01ub.",
        "attributes of an array": begin + b"}(U\x05shapeK\x01ub.",
        "more bytes than shape": begin + b"(K\x01K\x02\x85" + u1 + b"U\x03abctb.",
        "huge shape": begin + b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86" + u1 + b"U\x01atb.",
        "negative shape": begin + b"(K\x01J\xff\xff\xff\xff\x85" + u1 + b"U\x00tb.",
        "extension registry": b"\x80\x02\x82\x01.",
        "persistent id": b"Pfile\n.",
        "buffer": b"\x80\x05\x97.",
        "tuple as a key": b"\x80\x02}(K\x01\x85K\x01u.",
        "fetch of nothing": b"\x80\x02h\x07.",
        "empty stack": b"\x80\x02.",
        "no mark": b"\x80\x02t.",
        "no end": b"\x80\x02K\x01",
        "empty": b"",
        "giant string": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        "global by computed name": b"\x80\x04]]\x93.",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(hostile_pickles(Path("x"))))
def test_a_hostile_pickle_executes_nothing(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    with pytest.raises(DataError, match=r"a pickle that is not plain data|a damaged pickle"):
        read_plain_pickle(hostile_pickles(marker)[name])
    assert not marker.exists()


def test_the_payload_of_this_test_would_work(tmp_path: Path) -> None:
    pickle.loads(hostile_pickles(tmp_path / "executed")["os.system"])
    assert (tmp_path / "executed").exists()


def test_a_memo_place_far_away_takes_no_memory() -> None:
    far = b"\xff\xff\xff\xff"
    assert read_plain_pickle(b"\x80\x02K\x05r" + far + b"j" + far + b"\x86.") == (5, 5)


def test_a_hostile_archive_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    files, _, _ = cifar_files("cifar10-python")
    marker = tmp_path / "executed"
    files["cifar-10-batches-py/data_batch_3"] = pickle.dumps(Calls(os.system, f"touch {marker}"))
    with pytest.raises(DataError, match=r"data_batch_3 in .*: a pickle that is not plain data: it wants to call"):
        load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")
    assert not marker.exists()


def test_lists_of_lists_without_end_are_not_printed(tmp_path: Path) -> None:
    """2^60 copies of one list: fast to make, for ever to print or compare."""
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]
    files, _, _ = cifar_files("cifar10-python")
    batch = {b"data": np.zeros((1, 3072), dtype=np.uint8), b"labels": [nested]}
    files["cifar-10-batches-py/test_batch"] = pickle.dumps(batch, protocol=4)
    with pytest.raises(DataError, match="label of image 0 is a list"):
        load_data(write_tar(tmp_path / "a.tar", files), cache_dir=tmp_path / "cache")


@given(st.binary(max_size=200))
def test_any_bytes_are_data_or_a_data_error(content: bytes) -> None:
    with suppress(DataError):
        read_plain_pickle(content)


@given(st.data())
def test_a_changed_pickle_is_data_or_a_data_error(data: st.DataObject) -> None:
    content = bytearray(python2_pickle({b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"labels": [1, 2, 3]}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DataError):
        read_plain_pickle(bytes(content))


def test_an_odd_escape_in_a_string_is_refused_without_a_warning() -> None:
    """The standard library warns of it while it looks for the instruction, which is then refused like any other."""
    with pytest.raises(DataError, match="the instruction STRING"):
        read_plain_pickle(b"S'a\\qb'\n.")
