#include "quantize.h"

#include "quantize.cuh"

namespace fastrlhf {
namespace {

template <class T>
int quantize(bool nf4, const std::array<uintptr_t, 4>& a, int64_t rows, int64_t columns,
             cudaStream_t stream) {
  const int64_t blocks = (columns + CUDA_NF4_BLOCK - 1) / CUDA_NF4_BLOCK;
  if (nf4 && rows * blocks > 0) {
    quantize_nf4_kernel<T><<<quantize_blocks(rows * blocks, QUANTIZE_WARPS), QUANTIZE_THREADS, 0, stream>>>(
        (const T*)a[0], (uint8_t*)a[1], (float*)a[2], (const float*)a[3], rows, columns);
  } else if (!nf4 && rows > 0) {
    quantize_int8_kernel<T><<<quantize_blocks(rows, QUANTIZE_WARPS), QUANTIZE_THREADS, 0, stream>>>(
        (const T*)a[0], (int8_t*)a[1], (float*)a[2], rows, columns);
  }
  return cudaGetLastError();
}

template <class T>
int dequantize(bool nf4, const std::array<uintptr_t, 7>& a, int64_t rows, int64_t columns,
               cudaStream_t stream) {
  if (rows * columns == 0) return cudaSuccess;
  if (nf4) {
    const int64_t bytes = (columns + CUDA_NF4_BLOCK - 1) / CUDA_NF4_BLOCK * (CUDA_NF4_BLOCK / 2) * rows;
    const CudaNF4Weight from = {(const uint8_t*)a[0], (const uint8_t*)a[1], (const float*)a[2],
                                (const float*)a[3],   (const float*)a[4],   (const float*)a[5]};
    dequantize_nf4_kernel<T><<<quantize_blocks(bytes, QUANTIZE_THREADS), QUANTIZE_THREADS, 0, stream>>>(
        from, (T*)a[6], rows, columns);
  } else {
    dequantize_int8_kernel<T>
        <<<quantize_blocks(rows * columns, QUANTIZE_THREADS), QUANTIZE_THREADS, 0, stream>>>(
            (const int8_t*)a[0], (const float*)a[1], (T*)a[6], rows, columns);
  }
  return cudaGetLastError();
}

}  // namespace

int launch_quantize(WeightType type, bool nf4, const std::array<uintptr_t, 4>& addresses, int64_t rows,
                    int64_t columns, cudaStream_t stream) {
  const auto run = type == WeightType::FLOAT32    ? quantize<float>
                   : type == WeightType::BFLOAT16 ? quantize<__nv_bfloat16>
                                                  : quantize<__half>;
  return run(nf4, addresses, rows, columns, stream);
}

int launch_dequantize(WeightType type, bool nf4, const std::array<uintptr_t, 7>& addresses, int64_t rows,
                      int64_t columns, cudaStream_t stream) {
  const auto run = type == WeightType::FLOAT32    ? dequantize<float>
                   : type == WeightType::BFLOAT16 ? dequantize<__nv_bfloat16>
                                                  : dequantize<__half>;
  return run(nf4, addresses, rows, columns, stream);
}

}  // namespace fastrlhf
