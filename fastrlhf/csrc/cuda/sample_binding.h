// The CUDA module's `sample`.
#pragma once

#include <cuda_bf16.h>
#include <pybind11/pybind11.h>

#include "../sample_binding.h"
#include "sample.h"

namespace fastrlhf {

inline void bind_sample(pybind11::module_& module) {
  module.def("sample", [](bool bfloat16, const std::array<uintptr_t, 7>& addresses,
                          const std::array<int64_t, 5>& sizes, const std::array<int64_t, 3>& whole,
                          const std::array<double, 4>& real, const std::array<uintptr_t, 7>& of_rows,
                          const std::array<int64_t, 7>& strides, uintptr_t stream_address) {
    const SampleCall call = {addresses, sizes, whole, real, of_rows, strides};
    const cudaStream_t stream = (cudaStream_t)stream_address;
    pybind11::gil_scoped_release release;
    return bfloat16 ? launch_sample(sample_arguments<__nv_bfloat16>(call), stream)
                    : launch_sample(sample_arguments<float>(call), stream);
  });
}

}  // namespace fastrlhf
