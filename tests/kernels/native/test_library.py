"""Which kernels are loaded: only those of these sources, and only what the CPU runs."""

import re

import pytest
import torch

from gptoss_kernels.native import build, library
from gptoss_kernels.native.linear import linear


@pytest.fixture
def unopened(monkeypatch):
    """The library as before its first use."""
    monkeypatch.setattr(library._Open, "library", None)
    monkeypatch.setattr(library._Open, "kernels", None)
    monkeypatch.setattr(library._Open, "threads", 0)


def test_every_cpu_has_portable_kernels_and_the_best_come_first():
    names = library.isas()
    assert names[-1] == "portable"
    assert library.kernels().isa in names


def test_the_variable_forces_an_instruction_set(unopened, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "portable")
    assert library.isa() == "portable"


def test_an_impossible_instruction_set_is_refused_with_what_there_is(unopened, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "sse9")
    with pytest.raises(ValueError, match=r"GPTOSS_NATIVE_ISA=sse9 cannot run here.*portable"):
        library.kernels()


def test_using_ends_with_its_block():
    before = library.isa()
    with pytest.raises(KeyError), library.using("portable"):
        assert library.isa() == "portable"
        raise KeyError
    assert library.isa() == before


def test_a_missing_library_is_named_with_its_remedy(unopened, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "_native.so")
    assert "python -m gptoss_kernels.native.build" in str(library.reason())
    with pytest.raises(RuntimeError, match="not built"):
        library.kernels()


def test_a_library_of_other_sources_is_not_used(unopened, monkeypatch):
    assert library.reason() is None
    monkeypatch.setattr(build, "digest", lambda: "other")
    assert "other sources" in str(library.reason())


def test_a_file_that_is_no_library_is_not_used(unopened, monkeypatch, tmp_path):
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(build, "LIBRARY", broken)
    assert "does not load" in str(library.reason())


def test_python_and_cpp_list_the_same_kernels_in_the_same_order():
    struct = (build.SOURCES / "abi.h").read_text().split("struct Kernels {")[1].split("\n};")[0]
    assert re.findall(r"^  int32_t \(\*(\w+)\)", struct, re.M) == list(library.KERNELS)
    table = (build.SOURCES / "table.hpp").read_text().split("return {")[1].split("};")[0]
    assert re.findall(r"\w+", table)[1:] == list(library.KERNELS)


def test_arguments_have_the_types_of_the_header():
    kinds = {"int64_t": "_I", "int32_t": "_D", "float": "_F"}
    names = {getattr(library, name): name for name in ("_P", "_I", "_D", "_F")}
    struct = (build.SOURCES / "abi.h").read_text().split("struct Kernels {")[1]
    for name, types in library.KERNELS.items():
        found = re.search(rf"\(\*{name}\)\(([^)]*)\)", struct)
        assert found
        arguments = [each.split() for each in found[1].split(",")]
        expected = ["_P" if "*" in " ".join(each) else kinds[each[-2]] for each in arguments]
        assert [names[each] for each in types] == expected, name


def test_kernels_follow_torchs_threads():
    linear(torch.ones(1, 8), torch.ones(3, 8))
    assert library._Open.threads == torch.get_num_threads() == 1
    torch.set_num_threads(2)
    try:
        linear(torch.ones(1, 8), torch.ones(3, 8))
        assert library._Open.threads == 2
    finally:
        torch.set_num_threads(1)
