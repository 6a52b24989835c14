#include "gae.cuh"

#include "kernels.h"

namespace fastrlhf {
namespace {

template <class T>
int launch(const std::array<uintptr_t, 7>& a, uintptr_t scratch, int64_t rows, int64_t columns, float gamma,
           float gamma_lam, cudaStream_t stream) {
  if (rows > 0) {
    gae_kernel<T><<<gae_blocks(rows), GAE_THREADS, 0, stream>>>(
        (const T*)a[0], (const T*)a[1], (const bool*)a[2], (const bool*)a[3], (T*)a[4], (T*)a[5],
        (double*)scratch, rows, columns, gamma, gamma_lam);
    if (const cudaError_t error = cudaGetLastError()) return error;
  }
  moments_finish<MOMENTS_THREADS>
      <<<1, MOMENTS_THREADS, 0, stream>>>((const double*)scratch, (double*)a[6], rows);
  return cudaGetLastError();
}

}  // namespace

int launch_gae(bool bfloat16, const std::array<uintptr_t, 7>& addresses, uintptr_t scratch, int64_t rows,
               int64_t columns, float gamma, float gamma_lam, cudaStream_t stream) {
  return bfloat16 ? launch<__nv_bfloat16>(addresses, scratch, rows, columns, gamma, gamma_lam, stream)
                  : launch<float>(addresses, scratch, rows, columns, gamma, gamma_lam, stream);
}

}  // namespace fastrlhf
