"""The native bodies in the order of `gptoss_kernels.backend.Backend`."""

from gptoss_kernels.backend import Backend
from gptoss_kernels.native.attention import attention
from gptoss_kernels.native.lens import lens
from gptoss_kernels.native.linear import linear
from gptoss_kernels.native.moe import moe
from gptoss_kernels.native.norm import rms_norm
from gptoss_kernels.native.rope import rotate
from gptoss_kernels.native.route import choose, route_edited, weigh
from gptoss_kernels.native.unembed import unembed

NATIVE = Backend(
    name="native",
    rms_norm=rms_norm,
    linear=linear,
    rotate=rotate,
    attention=attention,
    choose=choose,
    weigh=weigh,
    moe=moe,
    unembed=unembed,
    route_edited=route_edited,
    lens=lens,
)
