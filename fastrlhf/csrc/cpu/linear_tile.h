// The tiles of a thin matrix product. Included once for each width of vectors, in a namespace and under a
// target of its own, which provides `vec`, WIDTH, MAX_BATCH, `load`, `load_some` and `reduce4`.
//
// A tile is four rows of the weight by up to MAX_BATCH rows of x, one accumulator each, with the lanes along
// `in`: the weight is read as it lies, once, and each vector of it meets every row of x. Each number of y goes
// through the same additions in the same order in every tile, so that a batch does not change its rows' bits.

constexpr int ROWS = 4;
// A block of weight rows stays in the first-level cache while the rows of x pass by: eight rows of 576 floats. With
// four of them all of x comes from the second level for every four, and a batch of 32 takes a third longer.
constexpr int64_t BLOCK_BYTES = 20 << 10;
constexpr int64_t LINE_BYTES = 64;

template <int BATCH, class W>
static inline __attribute__((always_inline)) void tile(const ThinLinear& p, const W* weight, int64_t row,
                                                       int64_t first, float* to,
                                                       const W* const (&coming)[ROWS]) {
  const W* rows[ROWS];
  for (int r = 0; r < ROWS; ++r) rows[r] = weight + (row + r < p.out ? row + r : p.out - 1) * p.in;
  const float* x = p.x + first * p.in;
  vec sums[BATCH][ROWS] = {};
  const int64_t whole = p.in / WIDTH * WIDTH;
  for (int64_t k = 0; k < whole; k += WIDTH) {
    vec w[ROWS];
    for (int r = 0; r < ROWS; ++r) w[r] = load(rows[r] + k);
    if (k % (LINE_BYTES / (int64_t)sizeof(W)) == 0) {
      for (int r = 0; r < ROWS; ++r)
        if (coming[r]) __builtin_prefetch(coming[r] + k);
    }
    for (int b = 0; b < BATCH; ++b) {
      const vec v = load(x + b * p.in + k);
      for (int r = 0; r < ROWS; ++r) sums[b][r] = w[r] * v + sums[b][r];
    }
  }
  if (const int rest = (int)(p.in - whole)) {
    for (int b = 0; b < BATCH; ++b) {
      const vec v = load_some(x + b * p.in + whole, rest);
      for (int r = 0; r < ROWS; ++r) sums[b][r] = load_some(rows[r] + whole, rest) * v + sums[b][r];
    }
  }
  for (int b = 0; b < BATCH; ++b) reduce4(sums[b], to + (first + b) * STEP);
}

template <class W>
static inline void some_batch(const ThinLinear& p, const W* weight, int64_t row, int64_t first, int count,
                              float* to, const W* const (&coming)[ROWS]) {
  switch (count) {
    case 1: return tile<1>(p, weight, row, first, to, coming);
    case 2: return tile<2>(p, weight, row, first, to, coming);
    case 3: return tile<3>(p, weight, row, first, to, coming);
#if FASTRLHF_LINEAR_MAX_BATCH > 3
    case 4: return tile<4>(p, weight, row, first, to, coming);
    case 5: return tile<5>(p, weight, row, first, to, coming);
    case 6: return tile<6>(p, weight, row, first, to, coming);
#endif
  }
}

template <class W>
static inline void rows_of(const ThinLinear& p, const W* weight, int64_t begin, int64_t end) {
  // The batch in equal parts: 8 rows as 4 and 4, not 6 and 2.
  const int64_t parts = (p.batch + MAX_BATCH - 1) / MAX_BATCH;
  const int64_t fitting = BLOCK_BYTES / ((p.in + 1) * (int64_t)sizeof(W)) / ROWS * ROWS;
  const int64_t block = fitting < ROWS ? ROWS : fitting;
  // Rows of y are a power of two apart as often as not, and then share a few lines of the cache: sixteen bytes
  // here and sixteen there took 24 ms for 49152 x 576 at batch 32 on one core, and through this buffer 14 ms.
  float buffer[MAX_THIN_BATCH * STEP];
  for (int64_t from = begin; from < end; from += block) {
    const int64_t to = from + block < end ? from + block : end;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = p.batch * part / parts;
      const int count = (int)(p.batch * (part + 1) / parts - first);
      for (int64_t row = from; row < to; row += ROWS) {
        // The next block is fetched while this one meets all parts of the batch. Fetched during the first of them
        // alone it came no faster than the memory gives, and the memory idled during the others.
        const W* coming[ROWS];
        for (int r = 0; r < ROWS; ++r)
          coming[r] = r * parts / ROWS == part ? weight + (row + r + block) * p.in : nullptr;
        some_batch(p, weight, row, first, count, buffer + (row - begin), coming);
      }
    }
  }
  for (int64_t b = 0; b < p.batch; ++b) put(p, b, begin, end, buffer + b * STEP);
}

static void run(const ThinLinear& p, int64_t begin, int64_t end) {
  p.codes ? rows_of(p, p.codes, begin, end) : rows_of(p, p.weight, begin, end);
}
