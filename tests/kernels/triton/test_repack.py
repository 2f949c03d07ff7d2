"""Experts ordered for Triton hold the checkpoint's bytes, no more, and give them back."""

import pytest
import torch

from gptoss_kernels.moe import Experts
from gptoss_kernels.triton.repack import FORMS, own_form, pack_for_triton


def drawn_experts(d_model=96, d_ff=160, lowest=100, highest=128):
    g = torch.Generator().manual_seed(5)

    def bytes_(*shape, low=0, high=255):
        return torch.randint(low, high + 1, shape, generator=g).to(torch.uint8)

    return Experts(
        bytes_(3, 2 * d_ff, d_model // 32, 16),
        bytes_(3, 2 * d_ff, d_model // 32, low=lowest, high=highest),
        torch.randn(3, 2 * d_ff, generator=g).bfloat16(),
        bytes_(3, d_model, d_ff // 32, 16),
        bytes_(3, d_model, d_ff // 32, low=lowest, high=highest),
        torch.randn(3, d_model, generator=g).bfloat16(),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("d_model, d_ff", [(32, 32), (96, 160), (128, 256)])
def test_comes_back_byte_for_byte(form, d_model, d_ff):
    experts = drawn_experts(d_model, d_ff)
    packed = pack_for_triton(experts, form=form)
    assert (packed.d_model, packed.d_ff) == (d_model, d_ff)
    for back, there in zip(packed.unpack(), experts, strict=True):
        assert back.dtype == there.dtype
        assert torch.equal(back, there)


def test_forms_hold_other_words():
    experts = drawn_experts()
    bits, nibbles = (pack_for_triton(experts, form=form) for form in FORMS)
    assert not torch.equal(bits.down_codes, nibbles.down_codes)
    assert torch.equal(bits.down_scales, nibbles.down_scales)
    assert pack_for_triton(experts).form == own_form()


def test_takes_no_more_memory_than_the_checkpoint():
    experts = drawn_experts(256, 384)
    packed = pack_for_triton(experts)
    tensors = [each for each in packed if isinstance(each, torch.Tensor)]
    assert sum(each.nbytes for each in tensors) == sum(each.nbytes for each in experts)


@pytest.mark.parametrize("highest, small", [(128, True), (129, False)])
def test_large_scales_are_noted(highest, small):
    experts = drawn_experts(lowest=highest, highest=highest)
    assert pack_for_triton(experts).small == small


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="255 means NaN"):
        pack_for_triton(drawn_experts(lowest=255, highest=255))


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form is one of bits, nibbles; got 'words'"):
        pack_for_triton(drawn_experts(), form="words")
