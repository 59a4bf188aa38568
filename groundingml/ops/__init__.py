"""Multi-scale deformable attention and modulated deformable convolution: compiled CPU and CUDA kernels, and
a plain PyTorch reference."""

from groundingml.ops import reference
from groundingml.ops.deform_conv import modulated_deform_conv
from groundingml.ops.functional import ms_deform_attn, ms_deform_attn_from_offsets
from groundingml.ops.library import OpsStatus, status

__all__ = [
    "OpsStatus",
    "modulated_deform_conv",
    "ms_deform_attn",
    "ms_deform_attn_from_offsets",
    "reference",
    "status",
]
