// The Python module fastrlhf._cpu: addresses and sizes in, nothing out. The launchers in
// fastrlhf/kernels/cpu/ check shapes, dtypes and contiguity before they hand over an address.
#include <pybind11/pybind11.h>

#include "cpu/adamw_binding.h"
#include "cpu/attention_binding.h"
#include "cpu/decode_attention_binding.h"
#include "cpu/decode_program_binding.h"
#include "cpu/kernels.h"
#include "cpu/linear_binding.h"
#include "cpu/quantize_binding.h"
#include "cpu/linear_logprob_binding.h"
#include "cpu/glu_binding.h"
#include "cpu/group_advantages_binding.h"
#include "cpu/matmul_binding.h"
#include "cpu/norm_binding.h"
#include "cpu/pool_binding.h"
#include "cpu/rope_binding.h"
#include "cpu/sample_binding.h"
#include "ppo_loss_binding.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastrlhf {

static bool portable_forced = false;

bool use_avx2() {
#ifdef FASTRLHF_HAS_AVX2_VERSION
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has_avx2 && !portable_forced;
#else
  return false;
#endif
}

static bool avx512_allowed = true;

bool use_avx512() {
#ifdef FASTRLHF_HAS_AVX2_VERSION
  static const bool has_avx512 = __builtin_cpu_supports("avx512f");
  return has_avx512 && avx512_allowed && use_avx2();
#else
  return false;
#endif
}

void allow_avx512(bool allowed) { avx512_allowed = allowed; }

void force_portable(bool portable) { portable_forced = portable; }

}  // namespace fastrlhf

PYBIND11_MODULE(_cpu, module) {
  using namespace fastrlhf;
  module.def("gae", [](uintptr_t rewards, uintptr_t values, uintptr_t mask, uintptr_t moments_mask,
                       uintptr_t advantages, uintptr_t returns, uintptr_t moments, int64_t rows,
                       int64_t columns, float gamma, float gamma_lam) {
    pybind11::gil_scoped_release release;
    gae((const float*)rewards, (const float*)values, (const bool*)mask, (const bool*)moments_mask,
        (float*)advantages, (float*)returns, (double*)moments, rows, columns, gamma, gamma_lam);
  });
  module.def("ppo_loss", [](const std::array<uintptr_t, PPO_LOSS_ARRAYS>& addresses, int64_t tokens,
                            const std::array<double, PPO_LOSS_NUMBERS>& numbers, int kl_estimator) {
    pybind11::gil_scoped_release release;
    ppo_loss(ppo_loss_arrays<float>(addresses), tokens, ppo_loss_options(numbers, kl_estimator));
  });
  bind_adamw(module);
  bind_attention(module);
  bind_decode_attention(module);
  bind_decode_program(module);
  bind_linear(module);
  bind_quantize(module);
  bind_linear_logprob(module);
  bind_glu(module);
  bind_group_advantages(module);
  bind_matmul(module);
  bind_norm(module);
  bind_pool(module);
  bind_rope(module);
  bind_sample(module);
  module.def("simd", [] { return use_avx2() ? "avx2" : "portable"; });
  module.def("force_portable", &force_portable);
  module.def("max_threads", [] {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
  });
}
