"""Backends: one table of bodies, chosen in one place."""

import inspect

import pytest
import torch

from gptoss_kernels import attention, linear, moe, rms_norm, rope, route, unembed
from gptoss_kernels.backend import NAMES, REFERENCE, Backend, available, select


def test_the_reference_is_always_there():
    assert "reference" in available("cpu")
    assert select("reference") is REFERENCE


def test_the_reference_holds_the_plain_bodies():
    assert Backend(
        "reference", rms_norm.rms_norm, linear.linear, rope.rotate, attention.attention,
        route.choose, route.weigh, moe.moe, unembed.unembed,
    ) == REFERENCE  # fmt: skip


def test_without_a_name_the_fastest_is_taken():
    assert select().name == available()[0]
    assert list(available()) == sorted(available(), key=NAMES.index)


def test_the_interpreter_is_taken_by_name_alone():
    assert "triton" not in available("cpu")
    assert select("triton", "cpu").name == "triton"  # the tests set TRITON_INTERPRET=1


def test_triton_is_the_first_choice_on_a_gpu():
    assert available("cuda") == ("triton", "reference")


def test_a_gpu_too_old_for_triton_takes_the_reference(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert available("cuda") == ("reference",)
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or more; this one has 7\.5"):
        select("triton", "cuda")


def test_without_the_interpreter_triton_says_how_to_turn_it_on(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before Python starts"):
        select("triton", "cpu")


def test_every_backend_has_the_signatures_of_the_reference():
    for name in (*available(), "triton"):
        for field in Backend._fields[1:]:
            body, plain = getattr(select(name), field), getattr(REFERENCE, field)
            if plain is None:  # a backend may have more, which needs no counterpart
                assert field in ("router", "attention_edits", "expert_edits")
                continue
            wanted, found = (inspect.signature(each).parameters for each in (plain, body))
            assert list(found)[: len(wanted)] == list(wanted), (name, field)
            assert all(found[each].default is None for each in list(found)[len(wanted) :])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'cuda' is unknown; choose one of native, triton, ref"):
        select("cuda")


def test_a_backend_this_machine_lacks_says_so():
    for name in set(NAMES) - set(available("cpu")) - {"triton"}:
        with pytest.raises(ValueError, match=f"'{name}' is not available on cpu.*backend=None"):
            select(name, "cpu")
