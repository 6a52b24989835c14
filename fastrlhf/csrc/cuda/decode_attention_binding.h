// The CUDA module's `decode_attention`.
#pragma once

#include <cuda_bf16.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "decode_attention.h"

namespace fastrlhf {

inline void bind_decode_attention(pybind11::module_& module) {
  module.def("decode_attention",
             [](bool bfloat16, const std::array<uintptr_t, 3>& addresses,
                const std::array<std::array<int64_t, 4>, 2>& caches, const std::array<int64_t, 8>& sizes,
                float scale, float softcap, int64_t splits, const std::array<uintptr_t, 3>& outputs,
                uintptr_t stream_address) {
               const DecodeCall call = {addresses, caches, sizes, scale, softcap};
               const cudaStream_t stream = (cudaStream_t)stream_address;
               float *sums = (float*)outputs[1], *parts = (float*)outputs[2];
               pybind11::gil_scoped_release release;
               return bfloat16 ? launch_decode_attention(decode_problem<__nv_bfloat16>(call), splits,
                                                         (__nv_bfloat16*)outputs[0], sums, parts, stream)
                               : launch_decode_attention(decode_problem<float>(call), splits,
                                                         (float*)outputs[0], sums, parts, stream);
             });
}

}  // namespace fastrlhf
