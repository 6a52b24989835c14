// DecodeProgram in fastrlhf._cpu: each method adds an instruction; addresses are those of buffers that outlive it.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "../sample_binding.h"
#include "decode_attention.h"
#include "decode_program.h"
#include "glu.h"
#include "linear.h"
#include "norm.h"
#include "rope.h"
#include "sample.h"

namespace fastrlhf {

// x, weight, codes, scales, bias, y; out, in; transposed, adds; factor.
using LinearCall = std::tuple<std::array<uintptr_t, 6>, std::array<int64_t, 2>, std::array<bool, 2>, float>;

inline ThinLinear thin_linear_of(const LinearCall& call, int64_t rows) {
  const auto& [address, size, flags, factor] = call;
  return {(const float*)address[0],
          (const float*)address[1],
          (const int8_t*)address[2],
          (const float*)address[3],
          (const float*)address[4],
          (float*)address[5],
          rows,
          size[0],
          size[1],
          flags[0],
          flags[1],
          factor};
}

inline void add_begin(DecodeProgram& program, const std::array<uintptr_t, 11>& a,
                      const std::array<int64_t, 4>& sizes, float embedding_scale) {
  const BeginStep step = {(const int64_t*)a[0],
                          (int32_t*)a[1],
                          (const int32_t*)a[2],
                          (int64_t*)a[3],
                          (const float*)a[4],
                          (const float*)a[5],
                          (float*)a[6],
                          (const float*)a[7],
                          (const float*)a[8],
                          (float*)a[9],
                          (float*)a[10],
                          sizes[0],
                          sizes[1],
                          sizes[2],
                          sizes[3],
                          embedding_scale};
  program.add([step](int64_t rows) { begin_step(step, rows); });
}

inline void add_linears(DecodeProgram& program, const std::vector<LinearCall>& calls) {
  std::vector<ThinLinear> products;
  for (const LinearCall& call : calls) products.push_back(thin_linear_of(call, 0));
  program.add([products](int64_t rows) mutable {
    for (ThinLinear& product : products) product.batch = rows;
    thin_linears(products.data(), (int64_t)products.size());
  });
}

// hidden_states, residual, weight, bias, normed, summed, mean, rstd; `each` rows of `columns` to a row of the batch.
inline void add_norm(DecodeProgram& program, const std::array<uintptr_t, 8>& a, int64_t each, int64_t columns,
                     float eps, float weight_offset) {
  const NormArrays arrays = {{(const float*)a[0], columns},
                             {(const float*)a[1], columns},
                             (const float*)a[2],
                             (const float*)a[3],
                             (float*)a[4],
                             (float*)a[5],
                             (float*)a[6],
                             (float*)a[7]};
  program.add([=](int64_t rows) { norm(arrays, rows * each, columns, eps, weight_offset); });
}

inline void add_copy_heads(DecodeProgram& program, uintptr_t from, uintptr_t to,
                           const std::array<int64_t, 4>& sizes) {
  const CopyHeads copy = {(const float*)from, (float*)to, sizes[0], sizes[1], sizes[2], sizes[3]};
  program.add([copy](int64_t rows) { copy_heads(copy, rows); });
}

// query, key, cos, sin; heads, key heads, width, rotated. In place.
inline void add_rope(DecodeProgram& program, const std::array<uintptr_t, 4>& a,
                     const std::array<int64_t, 4>& sizes) {
  const auto [heads, key_heads, width, rotated] = sizes;
  const auto in_place = [width = width](uintptr_t at, int64_t count) {
    return Heads{(const float*)at, (float*)at, count, count * width, width, count * width, width};
  };
  const Heads query = in_place(a[0], heads), key = in_place(a[1], key_heads);
  const Angles angles = {(const float*)a[2], (const float*)a[3], rotated, rotated, rotated};
  program.add([=, width = width](int64_t rows) { rope(query, key, angles, rows, width, false); });
}

// key, value, key cache, value cache, slots.
inline void add_write_cache(DecodeProgram& program, const std::array<uintptr_t, 5>& a, int64_t width) {
  const WriteCache write = {(const float*)a[0], (const float*)a[1],   (float*)a[2],
                            (float*)a[3],       (const int64_t*)a[4], width};
  program.add([write](int64_t rows) { write_cache(write, rows); });
}

// As `decode_attention`; the number of rows is the step's.
inline void add_decode_attention(DecodeProgram& program, const std::array<uintptr_t, 3>& addresses,
                                 const std::array<std::array<int64_t, 4>, 2>& caches,
                                 const std::array<int64_t, 8>& sizes, float scale, float softcap,
                                 uintptr_t output) {
  DecodeProblem<float> problem = decode_problem<float>({addresses, caches, sizes, scale, softcap});
  program.add([problem, output](int64_t rows) mutable {
    problem.rows = rows;
    decode_attention(problem, (float*)output);
  });
}

// gate, up, output. `up` [columns] is of every row where it does not go on with the rows.
inline void add_glu(DecodeProgram& program, const std::array<uintptr_t, 3>& a, int64_t columns,
                    bool up_of_rows, int activation) {
  const GLUArrays arrays = {nullptr, (const float*)a[0],       (const float*)a[1], 0,
                            columns, up_of_rows ? columns : 0, (float*)a[2],       nullptr,
                            nullptr};
  program.add([=](int64_t rows) { glu(arrays, rows, columns, (Activation)activation); });
}

// As `sample`, with settings of rows alone; the number of rows is the step's. Then the step ends.
inline void add_sample(DecodeProgram& program, const std::array<uintptr_t, 7>& addresses,
                       const std::array<int64_t, 5>& sizes, const std::array<uintptr_t, 7>& of_rows,
                       const std::array<int64_t, 7>& strides) {
  SampleArguments<float> arguments =
      sample_arguments<float>({addresses, sizes, {0, 0, 0}, {1.0, 1.0, 0.0, 1.0}, of_rows, strides});
  const EndStep end = {(const int64_t*)addresses[4], (int64_t*)of_rows[1], (bool*)addresses[2], sizes[3]};
  program.add([arguments, end](int64_t rows) mutable {
    arguments.rows = rows;
    sample(arguments);
    end_step(end, rows);
  });
}

inline void bind_decode_program(pybind11::module_& module) {
  pybind11::class_<DecodeProgram>(module, "DecodeProgram")
      .def(pybind11::init<>())
      .def("begin", &add_begin)
      .def("linears", &add_linears)
      .def("norm", &add_norm)
      .def("copy_heads", &add_copy_heads)
      .def("rope", &add_rope)
      .def("write_cache", &add_write_cache)
      .def("decode_attention", &add_decode_attention)
      .def("glu", &add_glu)
      .def("sample", &add_sample)
      .def("run", [](const DecodeProgram& program, int64_t rows) {
        pybind11::gil_scoped_release release;
        program.run(rows);
      });
}

}  // namespace fastrlhf
