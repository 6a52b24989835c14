// The binding of quantize.cpp.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "quantize.h"

namespace fastrlhf {

inline void bind_quantize(pybind11::module_& module) {
  module.def("quantize_int8",
             [](uintptr_t weight, uintptr_t codes, uintptr_t scales, int64_t rows, int64_t columns) {
               pybind11::gil_scoped_release release;
               quantize_int8((const float*)weight, (int8_t*)codes, (float*)scales, rows, columns);
             });
  module.def("quantize_nf4", [](uintptr_t weight, uintptr_t codes, uintptr_t maxima, int64_t rows,
                                int64_t columns, uintptr_t thresholds) {
    pybind11::gil_scoped_release release;
    quantize_nf4((const float*)weight, (uint8_t*)codes, (float*)maxima, rows, columns,
                 (const float*)thresholds);
  });
  module.def("dequantize_int8",
             [](uintptr_t codes, uintptr_t scales, uintptr_t weight, int64_t rows, int64_t columns) {
               pybind11::gil_scoped_release release;
               dequantize_int8((const int8_t*)codes, (const float*)scales, (float*)weight, rows, columns);
             });
  module.def("dequantize_nf4", [](const std::array<uintptr_t, 6>& weight, uintptr_t to, int64_t first,
                                  int64_t rows, int64_t columns) {
    pybind11::gil_scoped_release release;
    dequantize_nf4({(const uint8_t*)weight[0], (const uint8_t*)weight[1], (const float*)weight[2],
                    (const float*)weight[3], (const float*)weight[4], (const float*)weight[5]},
                   (float*)to, first, rows, columns);
  });
}

}  // namespace fastrlhf
