"""The file format: what is written is read by safetensors, what is damaged is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_workbench.checkpoint.errors import CheckpointError
from gptoss_workbench.checkpoint.safetensors_file import (
    Spec,
    map_tensors,
    read_header,
    spec_of,
    tensor_bytes,
    write_file,
)


@pytest.fixture
def tensors():
    return {
        "a": torch.arange(7, dtype=torch.uint8),
        "b": torch.randn(3, 5, dtype=torch.bfloat16),
        "c": torch.randn(2, 2, 2),
    }


def write(file, tensors):
    write_file(file, [(name, spec_of(t), [tensor_bytes(t)]) for name, t in tensors.items()])


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_safetensors_reads_what_is_written(tensors, tmp_path):
    write(tmp_path / "x.safetensors", tensors)
    assert_same(load_file(tmp_path / "x.safetensors"), tensors)


def test_what_safetensors_writes_is_mapped(tensors, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    assert_same(map_tensors(read_header(tmp_path / "x.safetensors")), tensors)


def test_a_tensor_at_an_odd_place_is_read_all_the_same(tensors, tmp_path):
    write(tmp_path / "x.safetensors", tensors)
    entries = read_header(tmp_path / "x.safetensors")
    assert entries["b"].start % 2 == 1
    assert_same(map_tensors(entries), tensors)


def test_chunks_that_do_not_add_up_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="a: expected 8 bytes, got 6"):
        write_file(tmp_path / "x", [("a", Spec("U8", (8,)), [b"123", b"456"])])


def test_cut_at_every_length_is_refused(tensors, tmp_path):
    file = tmp_path / "x.safetensors"
    write(file, tensors)
    whole = file.read_bytes()
    for length in (0, 5, 8, 40, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"truncated|not a safetensors file"):
            read_header(file)
    file.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="1 bytes longer than its header says"):
        read_header(file)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "U8", "shape": [4]}},
        {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 3]}},
        {"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}},
        {"a": {"dtype": "U8", "shape": [-4], "data_offsets": [0, -4]}},
        {"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 4]}},
        {"a": [1]},
        [],
    ],
)
def test_a_damaged_header_is_refused(header, tmp_path):
    blob = json.dumps(header).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(blob).to_bytes(8, "little") + blob + bytes(4))
    with pytest.raises(CheckpointError):
        read_header(file)
