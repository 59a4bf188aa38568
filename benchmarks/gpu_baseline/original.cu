// BASELINE FOR BENCHMARKS ONLY, never part of the package.
//
// The algorithm of the kernels that come with Deformable DETR and that most detectors still carry, written
// anew from its description so that there is something to be measured against: one thread for each channel of
// each output, scalar loads, and a backward whose 32-thread blocks sum the 32 channels' parts one after the
// other in a single thread and add to the gradient of value by scalar atomics. float32, 32 channels a head,
// like the networks measured here.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kChannels = 32;

struct Sizes {
  int rows, heads, levels, queries, points;
};

struct Corner {
  bool inside;
  int offset;
  float weight;
};

// The four corners of a point in pixels, outside of the level when so marked.
__device__ void corners_of(float y, float x, int height, int width, int heads, Corner (&corner)[4]) {
  const int y0 = static_cast<int>(floorf(y)), x0 = static_cast<int>(floorf(x));
  const float dy = y - y0, dx = x - x0;
  for (int k = 0; k < 4; ++k) {
    const int yy = y0 + k / 2, xx = x0 + k % 2;
    corner[k].inside = yy >= 0 && yy < height && xx >= 0 && xx < width;
    corner[k].offset = (yy * width + xx) * heads * kChannels;
    corner[k].weight = (k / 2 ? dy : 1 - dy) * (k % 2 ? dx : 1 - dx);
  }
}

__global__ void forward_kernel(int64_t n, const float* value, const int64_t* shapes, const int64_t* starts,
                               const float* locations, const float* weights, Sizes s, float* output) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<int64_t>(blockDim.x) * gridDim.x) {
    const int channel = i % kChannels;
    const int64_t pair = i / kChannels;
    const int head = pair % s.heads;
    const int64_t sample = pair / s.heads / s.queries;
    float sum = 0;
    for (int l = 0; l < s.levels; ++l) {
      const int height = shapes[2 * l], width = shapes[2 * l + 1];
      const float* level = value + ((sample * s.rows + starts[l]) * s.heads + head) * kChannels + channel;
      for (int p = 0; p < s.points; ++p) {
        const int64_t point = (pair * s.levels + l) * s.points + p;
        const float x = locations[2 * point] * width - 0.5f, y = locations[2 * point + 1] * height - 0.5f;
        if (!(y > -1 && x > -1 && y < height && x < width)) continue;
        Corner corner[4];
        corners_of(y, x, height, width, s.heads, corner);
        float sampled = 0;
        for (int k = 0; k < 4; ++k) {
          if (corner[k].inside) sampled += corner[k].weight * level[corner[k].offset];
        }
        sum += sampled * weights[point];
      }
    }
    output[i] = sum;
  }
}

// One block of 32 threads, one for each channel, for each head of each query.
__global__ void backward_kernel(const float* grad_output, const float* value, const int64_t* shapes,
                                const int64_t* starts, const float* locations, const float* weights, Sizes s,
                                float* grad_value, float* grad_locations, float* grad_weights) {
  __shared__ float part_x[kChannels], part_y[kChannels], part_weight[kChannels];
  const int channel = threadIdx.x;
  const int64_t pair = blockIdx.x;
  const int head = pair % s.heads;
  const int64_t sample = pair / s.heads / s.queries;
  const float top = grad_output[pair * kChannels + channel];
  for (int l = 0; l < s.levels; ++l) {
    const int height = shapes[2 * l], width = shapes[2 * l + 1];
    const int64_t base = ((sample * s.rows + starts[l]) * s.heads + head) * kChannels + channel;
    for (int p = 0; p < s.points; ++p) {
      const int64_t point = (pair * s.levels + l) * s.points + p;
      const float x = locations[2 * point] * width - 0.5f, y = locations[2 * point + 1] * height - 0.5f;
      part_x[channel] = part_y[channel] = part_weight[channel] = 0;
      if (y > -1 && x > -1 && y < height && x < width) {
        Corner corner[4];
        corners_of(y, x, height, width, s.heads, corner);
        const float dy = y - floorf(y), dx = x - floorf(x), weight = weights[point];
        float sampled = 0, slope_x = 0, slope_y = 0;
        for (int k = 0; k < 4; ++k) {
          if (!corner[k].inside) continue;
          const float v = value[base + corner[k].offset];
          sampled += corner[k].weight * v;
          slope_x += (k % 2 ? 1 : -1) * (k / 2 ? dy : 1 - dy) * v;
          slope_y += (k / 2 ? 1 : -1) * (k % 2 ? dx : 1 - dx) * v;
          atomicAdd(grad_value + base + corner[k].offset, corner[k].weight * weight * top);
        }
        part_weight[channel] = top * sampled;
        part_x[channel] = width * slope_x * top * weight;
        part_y[channel] = height * slope_y * top * weight;
      }
      __syncthreads();
      if (channel == 0) {
        float sum_x = 0, sum_y = 0, sum_weight = 0;
        for (int c = 0; c < kChannels; ++c) {
          sum_x += part_x[c];
          sum_y += part_y[c];
          sum_weight += part_weight[c];
        }
        grad_locations[2 * point] = sum_x;
        grad_locations[2 * point + 1] = sum_y;
        grad_weights[point] = sum_weight;
      }
      __syncthreads();
    }
  }
}

}  // namespace

// shapes and starts are on the GPU, as that op takes them. Both return a cudaError_t.
extern "C" int original_forward(const float* value, const int64_t* shapes, const int64_t* starts,
                                const float* locations, const float* weights, int batch, int rows, int heads,
                                int levels, int queries, int points, float* output, void* stream) {
  const int64_t n = static_cast<int64_t>(batch) * queries * heads * kChannels;
  const unsigned blocks = static_cast<unsigned>((n + 1023) / 1024);
  forward_kernel<<<blocks, 1024, 0, static_cast<cudaStream_t>(stream)>>>(
      n, value, shapes, starts, locations, weights, Sizes{rows, heads, levels, queries, points}, output);
  return cudaGetLastError();
}

// grad_value must be zero on entry.
extern "C" int original_backward(const float* grad_output, const float* value, const int64_t* shapes,
                                 const int64_t* starts, const float* locations, const float* weights,
                                 int batch, int rows, int heads, int levels, int queries, int points,
                                 float* grad_value, float* grad_locations, float* grad_weights,
                                 void* stream) {
  const unsigned blocks = static_cast<unsigned>(static_cast<int64_t>(batch) * queries * heads);
  backward_kernel<<<blocks, kChannels, 0, static_cast<cudaStream_t>(stream)>>>(
      grad_output, value, shapes, starts, locations, weights, Sizes{rows, heads, levels, queries, points},
      grad_value, grad_locations, grad_weights);
  return cudaGetLastError();
}
