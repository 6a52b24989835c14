// The gradient of a weight: both operands lie as the tiles of gemm.h read them, with the rows that are summed over
// outermost. A library that takes any operand has to turn one of them first, which is a tenth to a fifth of its time.
#include "weight_gradient.h"

#include <algorithm>

#include "gemm.h"

namespace fastrlhf {
namespace {

// Rows of grad_weight that one packed piece of x serves, whole tiles of every processor: packing it is then 2 % of the
// work, and the smallest layers still have several blocks for each thread.
constexpr int64_t BLOCK_ROWS = 192;

// The tile of grad_weight at (row, column) gets the products of `depth` rows from `at` on.
template <class T>
FASTRLHF_INLINE void tile(const WeightGradient& p, const float* panel, int64_t at, int64_t depth, int64_t row,
                          int64_t column) {
  Sums<T> sums;
  const int rows = (int)std::min<int64_t>(T::ROWS, p.out - row);
  const float* grad = p.grad + at * p.out + row;
  if (rows == T::ROWS) {
    multiply_add<T, 1>(sums, grad, p.out, panel, depth);
  } else {
    float stripe[PIECE * T::ROWS];
    pack_straight<T::ROWS>(grad, p.out, depth, rows, stripe);
    multiply_add<T, 1>(sums, stripe, T::ROWS, panel, depth);
  }
  const int columns = (int)std::min<int64_t>(T::COLUMNS, p.in - column);
  store_sums<T>(sums, p.grad_weight + row * p.in + column, p.in, rows, columns, at > 0);
}

// A block of grad_weight: BLOCK_ROWS by a panel's columns.
template <class T>
FASTRLHF_INLINE void block(const WeightGradient& p, int64_t first, int64_t column) {
  alignas(64) float panel[PIECE * T::COLUMNS];
  const int64_t end = std::min(first + BLOCK_ROWS, p.out);
  for (int64_t at = 0; at == 0 || at < p.rows; at += PIECE) {
    const int64_t depth = std::min(PIECE, p.rows - at);
    pack_straight<T::COLUMNS>(p.x + at * p.in + column, p.in, depth, p.in - column, panel);
    for (int64_t row = first; row < end; row += T::ROWS) tile<T>(p, panel, at, depth, row, column);
  }
}

void run(PortableTile, const WeightGradient& p, int64_t first, int64_t column) {
  block<PortableTile>(p, first, column);
}

#ifdef FASTRLHF_HAS_AVX2_VERSION
FASTRLHF_AVX2 void run(Avx2Tile, const WeightGradient& p, int64_t first, int64_t column) {
  block<Avx2Tile>(p, first, column);
}
FASTRLHF_AVX512 void run(Avx512Tile, const WeightGradient& p, int64_t first, int64_t column) {
  block<Avx512Tile>(p, first, column);
}
#endif

}  // namespace

void weight_gradient(const WeightGradient& product) {
  with_tile([&](auto tile) {
    typedef decltype(tile) T;
    const int64_t panels = (product.in + T::COLUMNS - 1) / T::COLUMNS;
    const int64_t blocks = panels * ((product.out + BLOCK_ROWS - 1) / BLOCK_ROWS);
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t i = 0; i < blocks; ++i) run(tile, product, i / panels * BLOCK_ROWS, i % panels * T::COLUMNS);
  });
}

}  // namespace fastrlhf
