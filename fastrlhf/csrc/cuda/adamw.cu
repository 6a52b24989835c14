#include "adamw.cuh"

#include <cuda_runtime_api.h>

#include "adamw.h"

namespace fastrlhf {
namespace {

template <class G>
int launch(const AdamWArrays<G>& arrays, int64_t size, const AdamWNumbers& numbers, cudaStream_t stream) {
  if (size == 0) return cudaSuccess;
  adamw_kernel<G><<<(unsigned)adamw_blocks(size), ADAMW_THREADS, 0, stream>>>(arrays, size, numbers,
                                                                              adamw_aligned(arrays));
  return cudaGetLastError();
}

}  // namespace

int launch_adamw(bool bfloat16, const std::array<uintptr_t, ADAMW_ARRAYS>& addresses, int64_t size,
                 const AdamWNumbers& numbers, uintptr_t stream) {
  return bfloat16 ? launch(adamw_arrays<__nv_bfloat16>(addresses), size, numbers, (cudaStream_t)stream)
                  : launch(adamw_arrays<float>(addresses), size, numbers, (cudaStream_t)stream);
}

}  // namespace fastrlhf
