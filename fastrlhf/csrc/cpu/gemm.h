// A packed float32 matrix product: tiles of the result stay in registers while both operands are read in order.
//
// One operand is *stripes* of T::ROWS rows, read one float at a time; the other is *panels* of T::COLUMNS columns, read
// in whole vectors. Everything is inlined into functions marked for the processor they are for.
#pragma once

#include "simd.h"

namespace fastrlhf {

template <class F, int VECTORS_IN_A_ROW, int ROWS_IN_A_TILE>
struct Tile {
  typedef F Vector;
  static constexpr int LANES = sizeof(F) / sizeof(float), VECTORS = VECTORS_IN_A_ROW;
  static constexpr int COLUMNS = LANES * VECTORS, ROWS = ROWS_IN_A_TILE;
};

// As many sums as leave registers for a row of the panel and one number of the stripe: 12 of the 16 of SSE2 and AVX2,
// 24 of the 32 of AVX-512.
typedef Tile<f8, 1, 6> PortableTile;
typedef Tile<f8, 2, 6> Avx2Tile;
typedef Tile<f16, 2, 12> Avx512Tile;

// `function` of the tile that fits this processor best.
template <class F>
auto with_tile(F function) {
#ifdef FASTRLHF_HAS_AVX2_VERSION
  if (use_avx512()) return function(Avx512Tile{});
  if (use_avx2()) return function(Avx2Tile{});
#endif
  return function(PortableTile{});
}

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <class T>
struct Sums {
  typename T::Vector at[T::ROWS][T::VECTORS] = {};
};

// sums[r][c] += the sum over k < depth of a[r * ROW + k * STEP] * panel[k][c].
template <class T, int ROW, int STEP>
FASTRLHF_INLINE void multiply_add(Sums<T>& sums, const float* a, const float* panel, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k, a += STEP, panel += T::COLUMNS) {
    typename T::Vector columns[T::VECTORS];
#pragma GCC unroll 4
    for (int c = 0; c < T::VECTORS; ++c) columns[c] = load_vector<typename T::Vector>(panel + c * T::LANES);
#pragma GCC unroll 16
    for (int r = 0; r < T::ROWS; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < T::VECTORS; ++c) sums.at[r][c] += columns[c] * a[r * ROW];
  }
}

// Writes the first `rows` and `columns` of the sums to `to`, or adds them to what is there.
template <class T>
FASTRLHF_INLINE void store_sums(const Sums<T>& sums, float* to, int64_t stride, int rows, int columns,
                                bool add) {
  typedef typename T::Vector V;
  if (rows == T::ROWS && columns == T::COLUMNS) {
#pragma GCC unroll 16
    for (int r = 0; r < T::ROWS; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < T::VECTORS; ++c) {
        float* at = to + r * stride + c * T::LANES;
        store_vector(at, add ? load_vector<V>(at) + sums.at[r][c] : sums.at[r][c]);
      }
    return;
  }
  float whole[T::ROWS * T::COLUMNS];
  memcpy(whole, sums.at, sizeof(whole));
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) {
      float& at = to[r * stride + c];
      at = (add ? at : 0.0f) + whole[r * T::COLUMNS + c];
    }
}

// The longest run of products that one register adds up. Longer ones lose bits: with runs of 256 the largest error of
// 256 products is twice that of MKL, with 128 the same. A piece of a panel of this depth also stays in the first-level
// cache while all stripes pass over it.
constexpr int64_t PIECE = 128;

// `to[rows][COLUMNS]` = (or +=, if `add`) stripes of `rows` rows, `[rows / ROWS][depth][ROWS]`, times a panel
// `[depth][COLUMNS]`. `to` holds whole stripes.
template <class T>
FASTRLHF_INLINE void stripes_times_panel(const float* stripes, const float* panel, float* to, int64_t rows,
                                         int64_t depth, bool add) {
  for (int64_t at = 0; at == 0 || at < depth; at += PIECE) {
    const int64_t piece = depth - at < PIECE ? depth - at : PIECE;
    for (int64_t row = 0; row < rows; row += T::ROWS) {
      Sums<T> sums;
      multiply_add<T, 1, T::ROWS>(sums, stripes + row * depth + at * T::ROWS, panel + at * T::COLUMNS, piece);
      store_sums<T>(sums, to + row * T::COLUMNS, T::COLUMNS, T::ROWS, T::COLUMNS, add || at > 0);
    }
  }
}

// One group of GROUP rows of a row-major matrix, turned: to[k][r] = from[r][k], zero for r >= rows.
template <int GROUP>
FASTRLHF_INLINE void pack_turned(const float* from, int64_t stride, int64_t rows, int64_t depth, float* to) {
  if (rows < GROUP) {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t r = 0; r < GROUP; ++r) to[k * GROUP + r] = r < rows ? from[r * stride + k] : 0.0f;
    return;
  }
  // Four steps at a time, so that what is read of a row's cache line is not one float.
  int64_t k = 0;
  for (; k + 4 <= depth; k += 4)
#pragma GCC unroll 32
    for (int r = 0; r < GROUP; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) to[(k + i) * GROUP + r] = from[r * stride + k + i];
  for (; k < depth; ++k)
    for (int r = 0; r < GROUP; ++r) to[k * GROUP + r] = from[r * stride + k];
}

// One group of GROUP columns of a row-major matrix: to[k][c] = from[k][c], zero for c >= columns.
template <int GROUP>
FASTRLHF_INLINE void pack_straight(const float* from, int64_t stride, int64_t depth, int64_t columns,
                                   float* to) {
  for (int64_t k = 0; k < depth; ++k) {
    if (columns >= GROUP)
      memcpy(to + k * GROUP, from + k * stride, GROUP * sizeof(float));
    else
      for (int64_t c = 0; c < GROUP; ++c) to[k * GROUP + c] = c < columns ? from[k * stride + c] : 0.0f;
  }
}

}  // namespace fastrlhf
