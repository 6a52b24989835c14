// Runs the body of `sample`.
#pragma once

#include "cuda/sample.cuh"
#include "sample_binding.h"

template <class T>
static void run_sample(const fastrlhf::SampleCall& call, bool reversed) {
  const auto arguments = fastrlhf::sample_arguments<T>(call);
  if (arguments.rows == 0) return;
  cuda_on_cpu::launch((unsigned)arguments.rows, fastrlhf::SAMPLE_THREADS, reversed,
                      [&] { fastrlhf::sample_kernel<T>(arguments); });
}

inline void bind_sample_body(pybind11::module_& module) {
  module.def("sample", [](bool bfloat16, const std::array<uintptr_t, 7>& addresses,
                          const std::array<int64_t, 5>& sizes, const std::array<int64_t, 3>& whole,
                          const std::array<double, 4>& real, const std::array<uintptr_t, 7>& of_rows,
                          const std::array<int64_t, 7>& strides, bool reversed) {
    const fastrlhf::SampleCall call = {addresses, sizes, whole, real, of_rows, strides};
    (bfloat16 ? run_sample<__nv_bfloat16> : run_sample<float>)(call, reversed);
  });
}
