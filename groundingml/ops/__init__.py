"""Multi-scale deformable attention: compiled CPU and CUDA kernels, and a plain PyTorch reference."""

from groundingml.ops import reference
from groundingml.ops.functional import ms_deform_attn, ms_deform_attn_from_offsets
from groundingml.ops.library import OpsStatus, status

__all__ = ["OpsStatus", "ms_deform_attn", "ms_deform_attn_from_offsets", "reference", "status"]
