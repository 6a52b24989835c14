// A float whose additions and multiplications each round once, where nvcc would fuse them: the numbers of ../exact.h.
#pragma once

#include <cstring>

#include "../inline.h"

namespace fastrlhf {

#ifdef FASTRLHF_CUDA_ON_CPU
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
#endif

struct Rounded {
  float x = 0;

  __device__ __forceinline__ Rounded operator+(Rounded other) const { return {__fadd_rn(x, other.x)}; }
  __device__ __forceinline__ Rounded operator-(Rounded other) const { return {__fsub_rn(x, other.x)}; }
  __device__ __forceinline__ Rounded operator*(Rounded other) const { return {__fmul_rn(x, other.x)}; }
  __device__ __forceinline__ Rounded operator+(float other) const { return {__fadd_rn(x, other)}; }
  __device__ __forceinline__ Rounded operator-(float other) const { return {__fsub_rn(x, other)}; }
  __device__ __forceinline__ Rounded operator*(float other) const { return {__fmul_rn(x, other)}; }
  __device__ __forceinline__ bool operator<(Rounded other) const { return x < other.x; }
};

__device__ __forceinline__ int32_t to_bits(Rounded number) {
  int32_t bits;
  memcpy(&bits, &number.x, sizeof bits);
  return bits;
}

__device__ __forceinline__ Rounded from_bits(int32_t bits) {
  Rounded number;
  memcpy(&number.x, &bits, sizeof bits);
  return number;
}

__device__ __forceinline__ Rounded to_floats(int32_t n) { return {(float)n}; }

}  // namespace fastrlhf
