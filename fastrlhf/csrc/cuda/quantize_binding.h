// The CUDA module's `quantize` and `dequantize`.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "quantize.h"

namespace fastrlhf {

inline void bind_quantize(pybind11::module_& module) {
  module.def("quantize", [](int type, bool nf4, const std::array<uintptr_t, 4>& addresses, int64_t rows,
                            int64_t columns, uintptr_t stream) {
    pybind11::gil_scoped_release release;
    return launch_quantize((WeightType)type, nf4, addresses, rows, columns, (cudaStream_t)stream);
  });
  module.def("dequantize", [](int type, bool nf4, const std::array<uintptr_t, 7>& addresses, int64_t rows,
                              int64_t columns, uintptr_t stream) {
    pybind11::gil_scoped_release release;
    return launch_dequantize((WeightType)type, nf4, addresses, rows, columns, (cudaStream_t)stream);
  });
}

}  // namespace fastrlhf
