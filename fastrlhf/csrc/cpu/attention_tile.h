// What attention's forward and backward are made of: small matrix products on packed tiles, and which scores
// of a tile a query sees.
//
// The query heads of one key-value head are taken together: row r of a block of queries is head r % group of
// position r / group, so that a packed key serves all of them, and six neighbouring rows end at nearly the
// same key: the triangle above the diagonal costs nothing.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"
#include "simd.h"
#include "softmax.h"

namespace fastrlhf {

constexpr int STRIP = 6;   // rows of a product held in registers, two vectors each: 12 of 16 registers
constexpr int PANEL = 16;  // columns of it
constexpr int KEYS = 96;   // keys of a tile; a multiple of both

inline int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// The positions of one sequence that count, and one of its key-value heads.
struct Sequence {
  int64_t begin, end, key_head;
};

// Every sequence with every key-value head.
inline std::vector<Sequence> sequences_of(const AttentionProblem& problem) {
  std::vector<Sequence> all;
  for (int64_t i = 0; i < problem.sequences; ++i) {
    const int64_t end = problem.cu_seqlens[i + 1];
    const int64_t begin = problem.cu_seqlens[i] + (problem.skip ? problem.skip[i] : 0);
    for (int64_t head = 0; begin < end && head < problem.key_heads; ++head) all.push_back({begin, end, head});
  }
  return all;
}

// `positions` positions of a sequence from `first` on, with the query heads of one key-value head.
struct QueryBlock {
  int64_t first, positions, group, head;  // head: the first of the group

  int64_t rows() const { return positions * group; }
  int64_t strips() const { return (rows() + STRIP - 1) / STRIP; }
  int64_t position(int64_t row) const { return first + std::min(row, rows() - 1) / group; }
  int64_t head_of(int64_t row) const { return head + row % group; }
};

// So many that a block has about `rows` rows.
inline int64_t positions_per_block(int64_t group, int64_t rows) { return std::max<int64_t>(8, rows / group); }

// The columns of a key tile from `first_key` on that a row at `position` sees: [begin, end), maybe empty.
struct Seen {
  int64_t begin, end;

  Seen(int64_t position, int64_t first_key, int64_t keys, int64_t window)
      : begin(window ? std::max<int64_t>(0, position - window + 1 - first_key) : 0),
        end(std::min(keys, position + 1 - first_key)) {}
};

// The columns, in whole panels, that some row of a strip sees, and whether every row sees all of them.
struct StripColumns {
  int64_t begin, end;
  bool whole;

  StripColumns(Seen first, Seen last)
      : begin(first.begin / PANEL * PANEL),
        end(rounded_up(last.end, PANEL)),
        whole(last.begin <= begin && first.end >= end) {}
};

FASTRLHF_INLINE f8 load8(const float* from) { return load(from, LANES); }
FASTRLHF_INLINE void store8(float* to, f8 from) { store(to, from, LANES); }

// Eight columns of a row that has `left` more of them; zeros after the last.
FASTRLHF_INLINE f8 load_columns(const float* from, int64_t left) {
  return left >= LANES ? load8(from) : left > 0 ? load(from, (int)left) : f8{};
}
FASTRLHF_INLINE void store_columns(float* to, f8 from, int64_t left) {
  if (left >= LANES) {
    store8(to, from);
  } else if (left > 0) {
    store(to, from, (int)left);
  }
}

FASTRLHF_INLINE f8 broadcast(float x) { return f8{} + x; }

// One operand of a product: element (i, j) is at data[i * row_stride + j * step].
struct Left {
  const float* data;
  int64_t row_stride, step;
};

// The other: columns 16 p to 16 p + 15 of row i are at data[p * panel_stride + i * row_stride].
struct Right {
  const float* data;
  int64_t panel_stride, row_stride;
};

// Six rows of `left` times the columns [begin, end) of `right`, whole panels, over `depth`:
// put(row, column, eight sums) for every eight of them.
template <class Put>
FASTRLHF_INLINE void multiply(Left left, Right right, int64_t begin, int64_t end, int64_t depth, Put put) {
  for (int64_t column = begin; column < end; column += PANEL) {
    const float* b = right.data + column / PANEL * right.panel_stride;
    const float* a = left.data;
    f8 sums[STRIP][2] = {};
    for (int64_t i = 0; i < depth; ++i, a += left.step, b += right.row_stride) {
      const f8 low = load8(b), high = load8(b + LANES);
#pragma GCC unroll 6
      for (int row = 0; row < STRIP; ++row) {
        const float x = a[row * left.row_stride];
        sums[row][0] += x * low;
        sums[row][1] += x * high;
      }
    }
#pragma GCC unroll 6
    for (int row = 0; row < STRIP; ++row) {
      put(row, column, sums[row][0]);
      put(row, column + LANES, sums[row][1]);
    }
  }
}

// Keys as the right operand of scores: [panels of 16 keys][width][16], zeros after the last key.
FASTRLHF_INLINE void pack_transposed(const HeadsIn& heads, int64_t first, int64_t keys, int64_t head,
                                     int64_t width, float* packed) {
  for (int64_t k = 0; k < rounded_up(keys, PANEL); ++k) {
    float* to = packed + k / PANEL * PANEL * width + k % PANEL;
    const float* from = k < keys ? heads.row(first + k, head) : nullptr;
    for (int64_t d = 0; d < width; ++d) to[d * PANEL] = from ? from[d] : 0.0f;
  }
}

// Keys as the right operand of what is summed over them: [panels of 16 columns][KEYS][16], zeros after the
// last column.
FASTRLHF_INLINE void pack_panels(const HeadsIn& heads, int64_t first, int64_t keys, int64_t head,
                                 int64_t width, float* packed) {
  for (int64_t k = 0; k < rounded_up(keys, PANEL); ++k) {
    const float* from = k < keys ? heads.row(first + k, head) : nullptr;
    for (int64_t d = 0; d < rounded_up(width, PANEL); d += LANES) {
      store8(packed + d / PANEL * PANEL * KEYS + k * PANEL + d % PANEL,
             from ? load_columns(from + d, width - d) : f8{});
    }
  }
}

// The rows of a block, `padded` floats each, times `factor`; zeros after the last column and the last row.
FASTRLHF_INLINE void pack_rows(const HeadsIn& heads, const QueryBlock& block, int64_t width, int64_t padded,
                               float factor, float* packed) {
  for (int64_t row = 0; row < block.strips() * STRIP; ++row) {
    float* to = packed + row * padded;
    const float* from = row < block.rows() ? heads.row(block.position(row), block.head_of(row)) : nullptr;
    for (int64_t d = 0; d < padded; d += LANES) {
      store_columns(to + d, from ? load_columns(from + d, width - d) * factor : f8{}, padded - d);
    }
  }
}

// Eight values from `column` on, `otherwise` where the column is not seen.
FASTRLHF_INLINE f8 where_seen(const Seen& seen, int64_t column, f8 x, float otherwise) {
  const i8 at = i8{0, 1, 2, 3, 4, 5, 6, 7} + (int32_t)column;
  return (at >= (int32_t)seen.begin) & (at < (int32_t)seen.end) ? x : broadcast(otherwise);
}

}  // namespace fastrlhf
