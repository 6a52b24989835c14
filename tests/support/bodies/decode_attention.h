// Runs the bodies of `decode_attention`.
#pragma once

#include <pybind11/stl.h>

#include "cuda/decode_attention.cuh"

template <class T>
static void run_decode_attention(const fastrlhf::DecodeProblem<T>& problem, int64_t splits, T* output,
                                 bool reversed) {
  using namespace fastrlhf;
  if (problem.rows == 0 || problem.heads == 0) return;
  const int64_t count = problem.rows * problem.heads * splits;
  std::vector<float> sums(2 * count, NAN), outputs(count * problem.width, NAN);
  const DecodeParts parts = {sums.data(), outputs.data()};
  with_decode_shape(problem, [&](auto shape) {
    cuda_on_cpu::launch(decode_blocks<decltype(shape)>(problem, splits), DECODE_THREADS, reversed,
                        [&] { decode_attention_kernel<T, decltype(shape)>(problem, splits, output, parts); });
    return 0;
  });
  if (splits == 1) return;
  cuda_on_cpu::launch((unsigned)(problem.rows * problem.heads), DECODE_THREADS, reversed,
                      [&] { decode_attention_merge<T>(parts, splits, problem.width, output); });
}

inline void bind_decode_attention_body(pybind11::module_& module) {
  module.def("decode_attention", [](bool bfloat16, const std::array<uintptr_t, 3>& addresses,
                                    const std::array<std::array<int64_t, 4>, 2>& caches,
                                    const std::array<int64_t, 8>& sizes, float scale, float softcap,
                                    int64_t splits, uintptr_t output, bool reversed) {
    const fastrlhf::DecodeCall call = {addresses, caches, sizes, scale, softcap};
    if (bfloat16) {
      run_decode_attention(fastrlhf::decode_problem<__nv_bfloat16>(call), splits, (__nv_bfloat16*)output,
                           reversed);
    } else {
      run_decode_attention(fastrlhf::decode_problem<float>(call), splits, (float*)output, reversed);
    }
  });
}
