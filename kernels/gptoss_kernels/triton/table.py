"""All Triton bodies in one table; `gptoss_kernels.backend.select` hands it out."""

from gptoss_kernels import attention, lens, linear, moe, route, route_edited, unembed
from gptoss_kernels.backend import Backend
from gptoss_kernels.triton.rms_norm import rms_norm
from gptoss_kernels.triton.rope import rotate

TRITON = Backend(
    name="triton",
    rms_norm=rms_norm,
    linear=linear.linear,
    rotate=rotate,
    attention=attention.attention,
    choose=route.choose,
    weigh=route.weigh,
    moe=moe.moe,
    unembed=unembed.unembed,
    route_edited=route_edited.route_edited,
    lens=lens.lens,
)
