// How a function is marked that CPU kernels, CUDA kernels and the CUDA bodies compiled for the CPU share.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__) || defined(FASTRLHF_CUDA_ON_CPU)
#define FASTRLHF_INLINE __host__ __device__ __forceinline__
#else
#define FASTRLHF_INLINE inline __attribute__((always_inline))
#endif

namespace fastrlhf {

// e^x - 1, and what is left of it when x is taken off (the k3 estimate of KL).
template <class F>
struct Expm1 {
  F expm1, rest;
};

}  // namespace fastrlhf
