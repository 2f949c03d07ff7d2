"""Trees of tensors: changed once where they are shared, and compared by all but their numbers."""

from typing import NamedTuple

import torch

from gptoss_hooks.edits.tree import form, over, tensors


class Pair(NamedTuple):
    name: str
    left: torch.Tensor | None
    right: torch.Tensor


def test_what_is_shared_stays_shared():
    one = torch.ones(2)
    first = Pair("a", None, one)
    tree = {"x": (first, first), "y": (one, 3)}
    doubled = over(tree, lambda tensor: tensor * 2)
    pair, same = doubled["x"]
    assert pair is same and pair.right is doubled["y"][0]
    assert type(pair) is Pair and pair.name == "a" and doubled["y"][1] == 3
    assert [each.tolist() for each in tensors(doubled)] == [[2.0, 2.0]] * 3
    assert tree["y"][0] is one and one.tolist() == [1.0, 1.0]


def test_a_form_is_all_but_the_numbers():
    tree = (Pair("a", None, torch.ones(2)), torch.zeros(3))
    assert form(tree) == form(over(tree, torch.rand_like))
    one = torch.ones(2)
    others = (
        (Pair("b", None, torch.ones(2)), torch.zeros(3)),
        (Pair("a", torch.ones(1), torch.ones(2)), torch.zeros(3)),
        (Pair("a", None, torch.ones(1)), torch.zeros(3)),
        (Pair("a", None, torch.ones(2).double()), torch.zeros(3)),
        (torch.zeros(3), Pair("a", None, torch.ones(2))),
    )
    assert all(form(tree) != form(other) for other in others)
    assert form((one, one)) != form((one, one.clone()))
