// Weights in 8 and 4 bits, and back: a warp a row (int8) or a block of 64 (NF4), a thread a byte on the way
// back. Layouts as fastrlhf/kernels/quantize.py describes them. Divisions round as IEEE says (nvcc's default),
// so that codes are the reference's bit for bit.
#pragma once

#include <cuda_fp16.h>

#include "number.cuh"
#include "reduce.cuh"
#include "rounded.cuh"

namespace fastrlhf {

constexpr int QUANTIZE_WARPS = 8, QUANTIZE_THREADS = QUANTIZE_WARPS * WARP;
constexpr int64_t CUDA_NF4_BLOCK = 64, CUDA_SCALE_BLOCK = 256;

__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

inline unsigned quantize_blocks(int64_t items, int64_t per_block) {
  return (unsigned)((items + per_block - 1) / per_block);
}

// The larger of the two; a NaN stays, whichever it is.
__device__ __forceinline__ float larger(float most, float x) { return x > most || x != x ? x : most; }

// Of a warp, in every lane.
__device__ __forceinline__ float warp_largest(float most) {
  for (unsigned distance = WARP / 2; distance > 0; distance /= 2)
    most = larger(most, __shfl_xor_sync(FULL_WARP, most, distance));
  return most;
}

// Grid: quantize_blocks(rows, QUANTIZE_WARPS) blocks of QUANTIZE_THREADS.
template <class T>
__global__ void __launch_bounds__(QUANTIZE_THREADS)
    quantize_int8_kernel(const T* __restrict__ weight, int8_t* __restrict__ codes, float* __restrict__ scales,
                         int64_t rows, int64_t columns) {
  const int64_t row = (int64_t)blockIdx.x * QUANTIZE_WARPS + threadIdx.x / WARP;
  if (row >= rows) return;  // whole warps: the shuffles below are among the lanes of one row
  const int lane = threadIdx.x % WARP;
  const T* from = weight + row * columns;
  float most = 0;
  for (int64_t i = lane; i < columns; i += WARP) most = larger(most, fabsf(to_float(from[i])));
  const float scale = warp_largest(most) / 127;
  if (lane == 0) scales[row] = scale;
  for (int64_t i = lane; i < columns; i += WARP) {
    const float code = scale > 0 ? rintf(to_float(from[i]) / scale) : 0.0f;
    codes[row * columns + i] = (int8_t)fminf(fmaxf(code, -127.0f), 127.0f);
  }
}

// The number of thresholds below x: a value on one has the lower code.
__device__ __forceinline__ int nf4_code(float x, const float* __restrict__ thresholds) {
  int code = 0;
  for (int i = 0; i < 15; ++i) code += x > thresholds[i];
  return code;
}

// Grid: quantize_blocks(rows * blocks, QUANTIZE_WARPS) blocks of QUANTIZE_THREADS; a lane has two neighbours,
// and so a byte.
template <class T>
__global__ void __launch_bounds__(QUANTIZE_THREADS)
    quantize_nf4_kernel(const T* __restrict__ weight, uint8_t* __restrict__ codes, float* __restrict__ maxima,
                        const float* __restrict__ thresholds, int64_t rows, int64_t columns) {
  const int64_t blocks = (columns + CUDA_NF4_BLOCK - 1) / CUDA_NF4_BLOCK;
  const int64_t index = (int64_t)blockIdx.x * QUANTIZE_WARPS + threadIdx.x / WARP;
  if (index >= rows * blocks) return;
  const int lane = threadIdx.x % WARP;
  const int64_t row = index / blocks, column = index % blocks * CUDA_NF4_BLOCK + 2 * lane;
  const T* from = weight + row * columns + column;
  const float even = column < columns ? to_float(from[0]) : 0.0f;
  const float odd = column + 1 < columns ? to_float(from[1]) : 0.0f;
  const float most = warp_largest(larger(fabsf(even), fabsf(odd)));
  if (lane == 0) maxima[index] = most;
  const float divisor = most > 0 ? most : 1.0f;
  const int high = nf4_code(even / divisor, thresholds), low = nf4_code(odd / divisor, thresholds);
  codes[index * (CUDA_NF4_BLOCK / 2) + lane] = (uint8_t)(high << 4 | low);
}

// Grid: quantize_blocks(rows * columns, QUANTIZE_THREADS) blocks of QUANTIZE_THREADS.
template <class T>
__global__ void __launch_bounds__(QUANTIZE_THREADS)
    dequantize_int8_kernel(const int8_t* __restrict__ codes, const float* __restrict__ scales,
                           T* __restrict__ weight, int64_t rows, int64_t columns) {
  const int64_t i = (int64_t)blockIdx.x * QUANTIZE_THREADS + threadIdx.x;
  if (i < rows * columns) weight[i] = from_float<T>((float)codes[i] * scales[i / columns]);
}

struct CudaNF4Weight {
  const uint8_t *codes, *scales;
  const float *scale_scales, *offset;
  const float *nf4, *dynamic;  // the code books
};

// Grid: quantize_blocks(rows * ceil(columns / 64) * 32, QUANTIZE_THREADS) blocks of QUANTIZE_THREADS.
template <class T>
__global__ void __launch_bounds__(QUANTIZE_THREADS)
    dequantize_nf4_kernel(CudaNF4Weight from, T* __restrict__ weight, int64_t rows, int64_t columns) {
  const int64_t blocks = (columns + CUDA_NF4_BLOCK - 1) / CUDA_NF4_BLOCK;
  const int64_t byte = (int64_t)blockIdx.x * QUANTIZE_THREADS + threadIdx.x;
  const int64_t index = byte / (CUDA_NF4_BLOCK / 2);
  if (index >= rows * blocks) return;
  const Rounded code = {from.dynamic[from.scales[index]]};
  const float maximum = (code * from.scale_scales[index / CUDA_SCALE_BLOCK] + *from.offset).x;
  const int64_t row = index / blocks;
  const int64_t column = index % blocks * CUDA_NF4_BLOCK + byte % (CUDA_NF4_BLOCK / 2) * 2;
  const int pair = from.codes[byte];
  T* to = weight + row * columns + column;
  if (column < columns) to[0] = from_float<T>(from.nf4[pair >> 4] * maximum);
  if (column + 1 < columns) to[1] = from_float<T>(from.nf4[pair & 15] * maximum);
}

}  // namespace fastrlhf
