// decode_attention in fastrlhf._cpu.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "decode_attention.h"

namespace fastrlhf {

inline void bind_decode_attention(pybind11::module_& module) {
  module.def(
      "decode_attention",
      [](const std::array<uintptr_t, 3>& addresses, const std::array<std::array<int64_t, 4>, 2>& caches,
         const std::array<int64_t, 8>& sizes, float scale, float softcap, uintptr_t output) {
        const DecodeCall call = {addresses, caches, sizes, scale, softcap};
        pybind11::gil_scoped_release release;
        decode_attention(decode_problem<float>(call), (float*)output);
      });
}

}  // namespace fastrlhf
