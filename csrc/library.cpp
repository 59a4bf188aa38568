// The schemas of the ops. Each device's kernels are registered beside them: cpu/register.cpp and
// cuda/register.cu of msda/ and deform_conv/. Shapes are in groundingml/ops/functional.py.
//
// spatial_shapes is [H0, W0, H1, W1, ...]; SymInt, so that graphs may keep it symbolic.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(groundingml, m) {
  m.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor "
      "attention_weights) "
      "-> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor sampling_locations, Tensor attention_weights, bool deterministic) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_from_offsets(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, "
      "Tensor sampling_offsets, Tensor attention_logits) -> Tensor");
  m.def(
      "ms_deform_attn_from_offsets_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, bool deterministic) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "modulated_deform_conv(Tensor x, Tensor weight, Tensor offsets, Tensor mask, int stride, int padding, "
      "int dilation) -> Tensor");
  m.def(
      "modulated_deform_conv_backward(Tensor grad_output, Tensor x, Tensor weight, Tensor offsets, Tensor "
      "mask, int stride, int padding, int dilation, bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)");
}
