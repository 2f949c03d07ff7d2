"""All Triton bodies in one table; `gptoss_kernels.backend.select` hands it out."""

from gptoss_kernels.backend import Backend
from gptoss_kernels.triton.attention import AttentionEdits, attention
from gptoss_kernels.triton.lens import lens
from gptoss_kernels.triton.linear import linear
from gptoss_kernels.triton.moe import ExpertEdits, moe, pack_for_triton
from gptoss_kernels.triton.rms_norm import rms_norm
from gptoss_kernels.triton.rope import rotate
from gptoss_kernels.triton.route import choose, router, weigh
from gptoss_kernels.triton.route_edited import route_edited
from gptoss_kernels.triton.unembed import unembed

TRITON = Backend(
    name="triton",
    rms_norm=rms_norm,
    linear=linear,
    rotate=rotate,
    attention=attention,
    choose=choose,
    weigh=weigh,
    moe=moe,
    unembed=unembed,
    route_edited=route_edited,
    router=router,
    lens=lens,
    pack_experts=pack_for_triton,
    attention_edits=AttentionEdits,
    expert_edits=ExpertEdits,
)
