"""Building the kernels: in one step or not at all, and with a message that helps."""

import ctypes
import platform
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gptoss_kernels.native import build

ROOT = Path(__file__).parents[3]


def compiler_missing() -> bool:
    try:
        build.compiler()
    except build.BuildError:
        return True
    return False


compiles = pytest.mark.skipif(compiler_missing(), reason="no C++ compiler; see `gptoss doctor`")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Sources of a library that compiles in a moment."""
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "dispatch.cpp").write_text(
        '#define EXPORT extern "C" __attribute__((visibility("default")))\n'
        "EXPORT const char* gw_digest() { return GW_DIGEST; }\n"
        "#ifdef GW_HAVE_AVX2\nEXPORT int gw_wide() { return 1; }\n#endif\n"
    )
    (sources / "isa_portable.cpp").write_text("int portable = 1;\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    return tmp_path / "_native.so"


@compiles
def test_a_build_carries_the_digest_of_its_sources(small):
    before = build.digest()
    library = ctypes.CDLL(str(build.build(small)))
    library.gw_digest.restype = ctypes.c_char_p
    assert library.gw_digest().decode() == before
    (build.SOURCES / "isa_portable.cpp").write_text("int portable = 2;\n")
    assert build.digest() != before


@compiles
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is an x86 instruction set")
def test_an_instruction_set_is_built_once_it_has_a_source(small):
    assert not hasattr(ctypes.CDLL(str(build.build(small))), "gw_wide")
    (build.SOURCES / "isa_avx2.cpp").write_text(
        "#include <immintrin.h>\n__m256 wide(__m256 a) { return _mm256_fmadd_ps(a, a, a); }\n"
    )
    assert hasattr(ctypes.CDLL(str(build.build(small.with_name("two.so")))), "gw_wide")


@compiles
def test_a_failed_build_leaves_the_old_library(small):
    build.build(small)
    old = small.read_bytes()
    (build.SOURCES / "isa_portable.cpp").write_text("int portable = ;\n")
    with pytest.raises(build.BuildError, match=r"isa_portable\.cpp"):
        build.build(small)
    assert small.read_bytes() == old
    assert sorted(path.name for path in small.parent.iterdir()) == ["_native.so", "src"]


def test_without_a_compiler_the_message_says_what_to_install(small, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match=r"apt install g\+\+"):
        build.build(small)
    assert not small.exists()


def test_a_compiler_that_does_not_start_is_named(small, monkeypatch):
    monkeypatch.setenv("CXX", str(small.parent / "no-such-compiler"))
    with pytest.raises(build.BuildError, match="no-such-compiler"):
        build.build(small)


def test_flags_keep_the_order_of_sums():
    assert "-ffp-contract=off" in build.FLAGS
    assert not {"-ffast-math", "-Ofast", "-march=native"} & {*build.FLAGS, *build.AVX512}


@pytest.fixture
def hook(monkeypatch):
    """The package build's hook, with hatchling's interface reduced to what it uses."""
    interface = ModuleType("interface")
    interface.__dict__["BuildHookInterface"] = object
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", interface)
    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    warnings: list[str] = []
    native = module.NativeKernels()
    native.root, native.app = str(ROOT), SimpleNamespace(display_warning=warnings.append)
    native.warnings = warnings
    return native


def test_a_package_without_a_compiler_has_no_library_and_says_so(hook, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    data = {"artifacts": []}
    hook.initialize("standard", data)
    assert data == {"artifacts": []}
    assert "no C++17 compiler found" in hook.warnings[0]
