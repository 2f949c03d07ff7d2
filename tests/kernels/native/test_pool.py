"""The threads behind one call: resized at will, shared by nobody, not lost in a fork."""

import os
import sys
import threading

import pytest
import torch

from gptoss_kernels.native.linear import linear


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def case():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(9, 160, generator=g), torch.randn(700, 160, generator=g)
    return x, weight, linear(x, weight)


def test_any_number_of_threads_gives_the_same(case):
    x, weight, expected = case
    try:
        for threads in (2, 5, 1, 3, 2, 1, 4):
            torch.set_num_threads(threads)
            for _ in range(5):
                assert torch.equal(linear(x, weight), expected)
    finally:
        torch.set_num_threads(1)


def test_callers_at_the_same_time_do_not_disturb_each_other(case, two_threads):
    x, weight, expected = case
    wrong = []

    def call():
        for _ in range(40):
            if not torch.equal(linear(x, weight), expected):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert not wrong


def test_work_goes_on_while_python_waits(case, two_threads):
    x, weight, expected = case
    assert torch.equal(linear(x, weight), expected)
    for _ in range(3):
        threading.Event().wait(0.002)  # long enough for workers to fall asleep
        assert torch.equal(linear(x, weight), expected)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_process_has_threads_of_its_own(case, two_threads):
    x, weight, expected = case
    assert torch.equal(linear(x, weight), expected)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(linear(x, weight), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(linear(x, weight), expected)
