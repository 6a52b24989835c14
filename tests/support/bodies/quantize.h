// Runs the bodies of `quantize` and `dequantize`.
#pragma once

#include "cuda/quantize.cuh"

template <class T>
static void run_quantize(bool nf4, const std::array<uintptr_t, 4>& a, int64_t rows, int64_t columns,
                         bool reversed) {
  using namespace fastrlhf;
  const int64_t blocks = (columns + CUDA_NF4_BLOCK - 1) / CUDA_NF4_BLOCK;
  const unsigned grid = quantize_blocks(nf4 ? rows * blocks : rows, QUANTIZE_WARPS);
  if (!grid) return;
  cuda_on_cpu::launch(grid, QUANTIZE_THREADS, reversed, [&] {
    if (nf4)
      quantize_nf4_kernel<T>((const T*)a[0], (uint8_t*)a[1], (float*)a[2], (const float*)a[3], rows, columns);
    else
      quantize_int8_kernel<T>((const T*)a[0], (int8_t*)a[1], (float*)a[2], rows, columns);
  });
}

template <class T>
static void run_dequantize(bool nf4, const std::array<uintptr_t, 7>& a, int64_t rows, int64_t columns,
                           bool reversed) {
  using namespace fastrlhf;
  const int64_t bytes = (columns + CUDA_NF4_BLOCK - 1) / CUDA_NF4_BLOCK * (CUDA_NF4_BLOCK / 2) * rows;
  const unsigned grid = quantize_blocks(nf4 ? bytes : rows * columns, QUANTIZE_THREADS);
  if (!grid) return;
  const CudaNF4Weight from = {(const uint8_t*)a[0], (const uint8_t*)a[1], (const float*)a[2],
                              (const float*)a[3],   (const float*)a[4],   (const float*)a[5]};
  cuda_on_cpu::launch(grid, QUANTIZE_THREADS, reversed, [&] {
    if (nf4)
      dequantize_nf4_kernel<T>(from, (T*)a[6], rows, columns);
    else
      dequantize_int8_kernel<T>((const int8_t*)a[0], (const float*)a[1], (T*)a[6], rows, columns);
  });
}

inline void bind_quantize_body(pybind11::module_& module) {
  module.def("quantize", [](int type, bool nf4, const std::array<uintptr_t, 4>& addresses, int64_t rows,
                            int64_t columns, bool reversed) {
    const auto run = type == 0   ? run_quantize<float>
                     : type == 1 ? run_quantize<__nv_bfloat16>
                                 : run_quantize<__half>;
    run(nf4, addresses, rows, columns, reversed);
  });
  module.def("dequantize", [](int type, bool nf4, const std::array<uintptr_t, 7>& addresses, int64_t rows,
                              int64_t columns, bool reversed) {
    const auto run = type == 0   ? run_dequantize<float>
                     : type == 1 ? run_dequantize<__nv_bfloat16>
                                 : run_dequantize<__half>;
    run(nf4, addresses, rows, columns, reversed);
  });
}
