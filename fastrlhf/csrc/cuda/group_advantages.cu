#include "group_advantages.cuh"

#include "group_advantages.h"

namespace fastrlhf {
namespace {

template <class T>
int launch(const std::array<uintptr_t, 6>& a, uintptr_t scratch, int64_t groups, int64_t group_size,
           int estimator, double epsilon, cudaStream_t stream) {
  if (groups > 0) {
    group_advantages_kernel<T><<<group_blocks(groups), GROUP_THREADS, 0, stream>>>(
        (const T*)a[0], (const bool*)a[1], (const int64_t*)a[2], (const int64_t*)a[3], (T*)a[4],
        (double*)scratch, groups, group_size, estimator, epsilon);
    if (const cudaError_t error = cudaGetLastError()) return error;
  }
  moments_finish<MOMENTS_THREADS>
      <<<1, MOMENTS_THREADS, 0, stream>>>((const double*)scratch, (double*)a[5], groups);
  return cudaGetLastError();
}

}  // namespace

int launch_group_advantages(bool bfloat16, const std::array<uintptr_t, 6>& addresses, uintptr_t scratch,
                            int64_t groups, int64_t group_size, int estimator, double epsilon,
                            cudaStream_t stream) {
  return (bfloat16 ? launch<__nv_bfloat16> : launch<float>)(addresses, scratch, groups, group_size, estimator,
                                                            epsilon, stream);
}

}  // namespace fastrlhf
