// Matrix products of many rows, with a product of low rank added in the same pass.
#pragma once

#include <cstdint>

namespace fastrlhf {

// A float32 matrix in either order: element (i, j) lies at i * stride + j, or at j * stride + i if `transposed`.
struct Matrix {
  const float* data;
  int64_t stride;
  bool transposed;
};

// c[rows][columns] = a[rows][depth] b[depth][columns] + bias[columns] + hidden up[rank][columns], where
// hidden[rows][rank] = scaling a down[depth][rank]. Rank 0: without the last; bias may be null.
struct MatmulJob {
  Matrix a, b, down, up;
  const float* bias;
  float *c, *hidden;  // contiguous
  int64_t rows, columns, depth, rank;
  float scaling;
};

// Floats of scratch memory, aligned to 64 bytes, that `matmul` wants.
int64_t matmul_scratch(const MatmulJob& job, int threads);

// Bit for bit the same for every number of threads.
void matmul(const MatmulJob& job, float* scratch, int threads);

}  // namespace fastrlhf
