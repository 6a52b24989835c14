// Runs the body of `group_advantages`.
#pragma once

#include "cuda/group_advantages.cuh"

template <class T>
static void run_group_advantages(const std::array<uintptr_t, 6>& a, int64_t groups, int64_t group_size,
                                 int estimator, double epsilon, bool reversed) {
  std::vector<double> scratch(groups * fastrlhf::MOMENTS, NAN);
  cuda_on_cpu::launch(fastrlhf::group_blocks(groups), fastrlhf::GROUP_THREADS, reversed, [&] {
    fastrlhf::group_advantages_kernel<T>((const T*)a[0], (const bool*)a[1], (const int64_t*)a[2],
                                         (const int64_t*)a[3], (T*)a[4], scratch.data(), groups, group_size,
                                         estimator, epsilon);
  });
  cuda_on_cpu::launch(1, fastrlhf::MOMENTS_THREADS, reversed, [&] {
    fastrlhf::moments_finish<fastrlhf::MOMENTS_THREADS>(scratch.data(), (double*)a[5], groups);
  });
}

inline void bind_group_advantages_body(pybind11::module_& module) {
  module.def("group_advantages", [](bool bfloat16, const std::array<uintptr_t, 6>& addresses, int64_t groups,
                                    int64_t group_size, int estimator, double epsilon, bool reversed) {
    (bfloat16 ? run_group_advantages<__nv_bfloat16>
              : run_group_advantages<float>)(addresses, groups, group_size, estimator, epsilon, reversed);
  });
}
