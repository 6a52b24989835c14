#include "sample.cuh"

#include "sample.h"

namespace fastrlhf {

template <class T>
int launch_sample(const SampleArguments<T>& arguments, cudaStream_t stream) {
  if (arguments.rows == 0) return cudaSuccess;
  sample_kernel<T><<<(unsigned)arguments.rows, SAMPLE_THREADS, 0, stream>>>(arguments);
  return cudaGetLastError();
}

template int launch_sample(const SampleArguments<float>&, cudaStream_t);
template int launch_sample(const SampleArguments<__nv_bfloat16>&, cudaStream_t);

}  // namespace fastrlhf
