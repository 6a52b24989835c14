// Rows of `a` are packed in stripes, as many as take 16 MB; each panel of `b` is packed where it is used, into the
// second-level cache, and all stripes pass over it. No packed copy of a weight is ever written to memory, which is a tenth
// to a fifth of a product of some hundred rows by oneDNN. The low-rank product lengthens stripes and panels by its rank.
#include "matmul.h"

#include <algorithm>

#include "gemm.h"

namespace fastrlhf {
namespace {

// The part of a panel that is packed at a time: 256 KB of the second-level cache, with AVX-512.
constexpr int64_t BLOCK = 16 * PIECE;

// How the work is cut. The bits of c depend on none of it.
template <class T>
struct Plan {
  int64_t stripes, panels, down_panels, depth, row_blocks;
  int64_t stripe_floats, down_floats,
      block_floats;  // of the scratch memory: all stripes, a panel of down, a block

  Plan(const MatmulJob& job, int threads)
      : stripes((job.rows + T::ROWS - 1) / T::ROWS),
        panels((job.columns + T::COLUMNS - 1) / T::COLUMNS),
        down_panels((job.rank + T::COLUMNS - 1) / T::COLUMNS),
        depth(job.depth + job.rank),
        // with few panels for many threads, several threads pack the same one
        row_blocks(std::max<int64_t>(1, std::min(stripes, 3 * threads / std::max<int64_t>(1, panels)))),
        stripe_floats(round_up(stripes * T::ROWS * depth, 16)),
        down_floats(job.depth * T::COLUMNS),
        block_floats(std::min(depth, BLOCK) * T::COLUMNS) {}

  int64_t items() const { return panels * row_blocks; }
  int64_t floats(int threads) const {
    return stripe_floats + down_panels * down_floats + threads * block_floats;
  }
};

template <class T>
struct Work {
  const MatmulJob& job;
  const Plan<T>& plan;
  int parts;
  float* scratch;

  float* stripe(int64_t number) const { return scratch + number * plan.depth * T::ROWS; }
  float* down(int64_t panel) const { return scratch + plan.stripe_floats + panel * plan.down_floats; }
  float* block(int part) const { return down(plan.down_panels) + part * plan.block_floats; }
};

// `depth` lines from `first` on of GROUP columns of a matrix, or of fewer where it ends: to[k][column].
template <int GROUP>
FASTRLHF_INLINE void pack(const Matrix& m, int64_t first, int64_t depth, int64_t column, int64_t columns,
                          float* to) {
  if (m.transposed)
    pack_turned<GROUP>(m.data + column * m.stride + first, m.stride, columns - column, depth, to);
  else
    pack_straight<GROUP>(m.data + first * m.stride + column, m.stride, depth, columns - column, to);
}

// to[rows][columns] = (or +=, if `add`) start + a stripe times a panel.
template <class T>
FASTRLHF_INLINE void multiply(const float* stripe, const float* panel, int64_t depth, const float* start,
                              float* to, int64_t stride, int rows, int columns, bool add) {
  for (int64_t at = 0; at < depth; at += PIECE) {
    Sums<T> sums;
    if (at == 0 && !add)
      for (int r = 0; r < T::ROWS; ++r)
        for (int c = 0; c < T::VECTORS; ++c)
          sums.at[r][c] = load_vector<typename T::Vector>(start + c * T::LANES);
    multiply_add<T, 1, T::ROWS>(sums, stripe + at * T::ROWS, panel + at * T::COLUMNS,
                                std::min(PIECE, depth - at));
    store_sums<T>(sums, to, stride, rows, columns, add || at > 0);
  }
}

template <class T>
FASTRLHF_INLINE void pack_downs(const Work<T>& work) {
  const MatmulJob& job = work.job;
  std::fill(work.down(0), work.down(work.plan.down_panels), 0.0f);
  for (int64_t j = 0; j < job.rank; ++j) {
    float* const to = work.down(j / T::COLUMNS) + j % T::COLUMNS;
    const float* const from = job.down.data + j * (job.down.transposed ? job.down.stride : 1);
    const int64_t step = job.down.transposed ? 1 : job.down.stride;
    for (int64_t k = 0; k < job.depth; ++k) to[k * T::COLUMNS] = from[k * step];
  }
}

// A stripe of a, and below it what of `hidden` belongs to its rows.
template <class T>
FASTRLHF_INLINE void make_stripe(const Work<T>& work, int64_t number) {
  const MatmulJob& job = work.job;
  const int64_t row = number * T::ROWS, rows = std::min<int64_t>(T::ROWS, job.rows - row);
  float* const to = work.stripe(number);
  pack<T::ROWS>({job.a.data, job.a.stride, !job.a.transposed}, 0, job.depth, row, job.rows, to);
  const float zero[T::COLUMNS] = {};
  for (int64_t panel = 0; panel < work.plan.down_panels; ++panel) {
    float tile[T::ROWS * T::COLUMNS] = {};
    multiply<T>(to, work.down(panel), job.depth, zero, tile, T::COLUMNS, T::ROWS, T::COLUMNS, false);
    const int64_t first = panel * T::COLUMNS, columns = std::min<int64_t>(T::COLUMNS, job.rank - first);
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t r = 0; r < T::ROWS; ++r) {
        const float hidden = job.scaling * tile[r * T::COLUMNS + c];
        to[(job.depth + first + c) * T::ROWS + r] = hidden;
        if (r < rows) job.hidden[(row + r) * job.rank + first + c] = hidden;
      }
  }
}

// Lines [first, first + depth) of a panel of b with up below it.
template <class T>
FASTRLHF_INLINE void pack_block(const MatmulJob& job, int64_t column, int64_t first, int64_t depth,
                                float* to) {
  const int64_t of_b = std::max<int64_t>(0, std::min(job.depth - first, depth));
  if (of_b) pack<T::COLUMNS>(job.b, first, of_b, column, job.columns, to);
  if (of_b < depth)
    pack<T::COLUMNS>(job.up, first + of_b - job.depth, depth - of_b, column, job.columns,
                     to + of_b * T::COLUMNS);
}

// The columns of c that a panel gives, in the stripes [begin, end).
template <class T>
FASTRLHF_INLINE void make_columns(const Work<T>& work, int64_t panel, int64_t begin, int64_t end,
                                  float* packed) {
  const MatmulJob& job = work.job;
  const int64_t column = panel * T::COLUMNS, columns = std::min<int64_t>(T::COLUMNS, job.columns - column);
  float start[T::COLUMNS] = {};
  if (job.bias) std::copy_n(job.bias + column, columns, start);
  for (int64_t first = 0; first < work.plan.depth; first += BLOCK) {
    const int64_t depth = std::min(BLOCK, work.plan.depth - first);
    pack_block<T>(job, column, first, depth, packed);
    for (int64_t number = begin; number < end; ++number) {
      const int64_t row = number * T::ROWS, rows = std::min<int64_t>(T::ROWS, job.rows - row);
      multiply<T>(work.stripe(number) + first * T::ROWS, packed, depth, start,
                  job.c + row * job.columns + column, job.columns, rows, columns, first > 0);
    }
  }
}

// A part's share of the stripes, and of the blocks of c.
template <class T>
FASTRLHF_INLINE void stripes_of_part(const Work<T>& work, int part) {
  const int64_t count = work.plan.stripes;
  for (int64_t at = part * count / work.parts; at < (part + 1) * count / work.parts; ++at)
    make_stripe<T>(work, at);
}

template <class T>
FASTRLHF_INLINE void columns_of_part(const Work<T>& work, int part) {
  const int64_t count = work.plan.items(), blocks = work.plan.row_blocks, stripes = work.plan.stripes;
  for (int64_t at = part * count / work.parts; at < (part + 1) * count / work.parts; ++at) {
    const int64_t block = at % blocks;
    make_columns<T>(work, at / blocks, block * stripes / blocks, (block + 1) * stripes / blocks,
                    work.block(part));
  }
}

void prepare(const Work<PortableTile>& work) { pack_downs(work); }
void make_stripes(const Work<PortableTile>& work, int part) { stripes_of_part(work, part); }
void make_result(const Work<PortableTile>& work, int part) { columns_of_part(work, part); }

#ifdef FASTRLHF_HAS_AVX2_VERSION
FASTRLHF_AVX2 void prepare(const Work<Avx2Tile>& work) { pack_downs(work); }
FASTRLHF_AVX2 void make_stripes(const Work<Avx2Tile>& work, int part) { stripes_of_part(work, part); }
FASTRLHF_AVX2 void make_result(const Work<Avx2Tile>& work, int part) { columns_of_part(work, part); }
FASTRLHF_AVX512 void prepare(const Work<Avx512Tile>& work) { pack_downs(work); }
FASTRLHF_AVX512 void make_stripes(const Work<Avx512Tile>& work, int part) { stripes_of_part(work, part); }
FASTRLHF_AVX512 void make_result(const Work<Avx512Tile>& work, int part) { columns_of_part(work, part); }
#endif

// As many rows of a as are packed at a time: 16 MB of them, and for the deepest products a hundred rows still, so that
// packing b again for each such share stays a small part of the product.
template <class T>
int64_t rows_of_share(const MatmulJob& job) {
  const int64_t fitting = (1 << 22) / std::max<int64_t>(1, job.depth + job.rank);
  return std::max<int64_t>(96, fitting) / T::ROWS * T::ROWS;
}

// Rows [first, first + rows) of a job.
MatmulJob share_of(const MatmulJob& job, int64_t first, int64_t rows) {
  MatmulJob share = job;
  share.a.data += first * (job.a.transposed ? 1 : job.a.stride);
  share.c += first * job.columns;
  share.hidden += first * job.rank;
  share.rows = std::min(rows, job.rows - first);
  return share;
}

}  // namespace

int64_t matmul_scratch(const MatmulJob& job, int threads) {
  return with_tile([&](auto tile) {
    typedef decltype(tile) T;
    return Plan<T>(share_of(job, 0, rows_of_share<T>(job)), threads).floats(threads);
  });
}

void matmul(const MatmulJob& job, float* scratch, int threads) {
  with_tile([&](auto tile) {
    typedef decltype(tile) T;
    const int64_t rows = rows_of_share<T>(job);
    for (int64_t first = 0; first < job.rows; first += rows) {
      const MatmulJob share = share_of(job, first, rows);
      const Plan<T> plan(share, threads);
      const Work<T> work{share, plan, threads, scratch};
      prepare(work);
#pragma omp parallel for schedule(static) num_threads(threads)
      for (int part = 0; part < threads; ++part) make_stripes(work, part);
#pragma omp parallel for schedule(static) num_threads(threads)
      for (int part = 0; part < threads; ++part) make_result(work, part);
    }
  });
}

}  // namespace fastrlhf
