// Sampling a row at a time: the distribution's statistics, the filters' threshold, and the largest of logit plus
// Gumbel noise. The noise is only computed where it can win: eight tokens whose logits lie so far below the best sum so
// far that no noise reaches it are passed over before a random number is drawn, and eight whose bound (one logarithm's
// chord) does not reach it before a logarithm is taken.
#if !defined(__x86_64__)
// Whatever has a fused multiply-add by default must not use it here (on x86-64 no version below has the instruction).
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
#endif

#include <cmath>
#include <memory>

#include "random_bits.h"
#include "sample.h"
#include "sample_threshold.h"
#include "../exact.h"

namespace fastrlhf {
namespace {

constexpr int COLUMNS = RANDOM_COLUMNS;  // rows are padded to it
constexpr float MOST_NOISE = 16.7f;      // -log(-log(1 - 2^-24)) is 16.64

// Three rows, kept by each thread from call to call: pages that come and go cost more than they hold.
struct Scratch {
  std::unique_ptr<float[]> drawn, plain, weights;
  int64_t held = 0;

  void hold(int64_t padded) {
    if (padded <= held) return;
    for (auto* row : {&drawn, &plain, &weights}) row->reset(new float[padded]);
    held = padded;
  }
};

FASTRLHF_INLINE float largest_lane(f8 x) {
  float largest = x[0];
  for (int lane = 1; lane < LANES; ++lane) largest = x[lane] > largest ? x[lane] : largest;
  return largest;
}

// A row's logits as they are evaluated and as they are drawn from, both padded with -inf, and their maxima.
struct Logits {
  const float *plain, *drawn;
  int64_t padded;
  float plain_largest, largest;
};

struct Maxima {
  f8 plain = f8{} - INFINITY, drawn = f8{} - INFINITY;
};

// A row of the arguments; `seen` and `banned` may be null.
struct RowInputs {
  const float* logits;
  const bool *seen, *banned;
};

FASTRLHF_INLINE void read_vector(const RowInputs& row, const SampleRow& settings, int64_t at, int count,
                                 Scratch& scratch, Maxima& maxima) {
  const f8 none = f8{} - INFINITY;
  f8 x = load(row.logits + at, count);
  for (int lane = count; lane < LANES; ++lane) x[lane] = -INFINITY;
  const f8 plain = x * settings.inverse;
  maxima.plain = plain > maxima.plain ? plain : maxima.plain;
  store(scratch.plain.get() + at, plain, LANES);
  if (!row.seen && !row.banned) return;
  const i8 was_seen = row.seen ? load_mask(row.seen + at, count) : i8{};
  if (any(was_seen)) {
    const f8 less = x > f8{} ? x / settings.penalty : x * settings.penalty;
    x = was_seen ? less : x;
  }
  if (row.banned) x = load_mask(row.banned + at, count) ? none : x;
  x = x * settings.inverse;
  maxima.drawn = x > maxima.drawn ? x : maxima.drawn;
  store(scratch.drawn.get() + at, x, LANES);
}

FASTRLHF_INLINE Logits read(const SampleArguments<float>& a, const SampleRow& settings, int64_t row,
                            Scratch& scratch) {
  const RowInputs inputs = {a.logits + row * a.logits_stride, a.seen ? a.seen + row * a.seen_stride : nullptr,
                            a.banned ? a.banned + row * a.banned_stride : nullptr};
  const int64_t padded = (a.columns + COLUMNS - 1) / COLUMNS * COLUMNS;
  Maxima maxima;
  int64_t at = 0;
  for (; at + LANES <= a.columns; at += LANES) read_vector(inputs, settings, at, LANES, scratch, maxima);
  if (at < a.columns) {
    read_vector(inputs, settings, at, (int)(a.columns - at), scratch, maxima);
    at += LANES;
  }
  for (; at < padded; ++at) scratch.plain[at] = scratch.drawn[at] = -INFINITY;
  const float* plain = scratch.plain.get();
  const float largest = largest_lane(maxima.plain);
  if (!inputs.seen && !inputs.banned) return {plain, plain, padded, largest, largest};
  return {plain, scratch.drawn.get(), padded, largest, largest_lane(maxima.drawn)};
}

// log Z and entropy of the plain distribution, relative to its largest logit; NaN where there is none.
struct Statistics {
  double log_sum, entropy;
};

FASTRLHF_INLINE Statistics statistics(const Logits& logits) {
  const f8 zero{};
  LaneSum sum, weighted;
  for (int64_t at = 0; at < logits.padded; at += LANES) {
    const f8 x = load(logits.plain + at, LANES) - logits.plain_largest;
    const f8 e = exact::exp(x);
    sum.add(e);
    weighted.add(e > zero ? e * x : zero);
  }
  const double z = sum.total(), log_sum = std::log(z), entropy = log_sum - weighted.total() / z;
  return {log_sum, entropy < 0 ? 0 : entropy};
}

FASTRLHF_INLINE float filter(const Logits& logits, const SampleRow& settings, float* weights) {
  float least = -INFINITY;
  if (settings.top_k)
    least = threshold({logits.drawn, nullptr, logits.padded}, least, logits.largest, (double)settings.top_k);
  if (settings.top_p < 1) {
    LaneSum sum;
    for (int64_t at = 0; at < logits.padded; at += LANES) {
      const f8 x = load(logits.drawn + at, LANES), weight = exact::weight(x - logits.largest);
      store(weights + at, weight, LANES);
      sum.add(x >= f8{} + least ? weight : f8{});
    }
    const double target = std::max((double)settings.top_p * sum.total(), (double)(1 / exact::UNITS));
    least = threshold({logits.drawn, weights, logits.padded}, least, logits.largest, target);
  }
  if (settings.min_p > 0) {
    const float ratio = exact::log(f8{} + settings.min_p)[0];
    least = std::max(least, logits.largest + ratio);
  }
  return least;
}

FASTRLHF_INLINE int64_t first_of(const Logits& logits, float value) {
  int64_t at = 0;
  while (!any(load(logits.drawn + at, LANES) == f8{} + value)) at += LANES;
  while (logits.drawn[at] != value) ++at;
  return at;
}

// At least the noise of a uniform u: -log(-log u) <= -log(1 - u), and the bits of a float lie on chords of its
// logarithm.
FASTRLHF_INLINE f8 noise_bound(f8 uniform) {
  constexpr float LN2 = 0.69314718f;
  return (127 * LN2 + 1e-3f) - to_floats(to_bits(1.0f - uniform)) * (LN2 / 8388608);
}

template <RandomBits* random_bits>
FASTRLHF_INLINE int64_t draw(const Logits& logits, const SampleRow& settings, float least) {
  const f8 none = f8{} - INFINITY;
  float best = -INFINITY;
  int64_t token = 0;
  for (int64_t start = 0; start < logits.padded; start += COLUMNS) {
    f8 below[COLUMNS / LANES], highest = none;
    for (int i = 0; i < COLUMNS / LANES; ++i) {
      const f8 x = load(logits.drawn + start + LANES * i, LANES);
      below[i] = x >= f8{} + least ? x - logits.largest : none;
      highest = below[i] > highest ? below[i] : highest;
    }
    if (!any(highest + MOST_NOISE > f8{} + best)) continue;
    int32_t bits[COLUMNS];
    random_bits(start / 4, settings.random, bits);
    for (int i = 0; i < COLUMNS / LANES; ++i) {
      i8 lanes;
      memcpy(&lanes, bits + LANES * i, sizeof lanes);
      const f8 uniform = exact::uniform<f8>(lanes);
      if (!any(below[i] + noise_bound(uniform) > f8{} + best)) continue;
      const f8 key = below[i] + exact::gumbel(uniform);
      for (int lane = 0; lane < LANES; ++lane) {
        if (key[lane] > best) {
          best = key[lane];
          token = start + LANES * i + lane;
        }
      }
    }
  }
  return token;
}

template <RandomBits* random_bits>
FASTRLHF_INLINE void sample_one(const SampleArguments<float>& a, int64_t row, Scratch& scratch) {
  const SampleRow settings = sample_row(a, row);
  const Logits logits = read(a, settings, row, scratch);
  const Statistics of = statistics(logits);
  if (!std::isfinite(logits.largest) || std::isnan(of.log_sum)) {
    a.tokens[row] = 0;
    a.logprobs[row] = a.entropy[row] = NAN;
    return;
  }
  const int64_t token =
      settings.greedy ? first_of(logits, logits.largest)
                      : draw<random_bits>(logits, settings, filter(logits, settings, scratch.weights.get()));
  a.tokens[row] = token;
  a.logprobs[row] = (float)((double)(logits.plain[token] - logits.plain_largest) - of.log_sum);
  a.entropy[row] = (float)of.entropy;
}

typedef void SampleOne(const SampleArguments<float>&, int64_t, Scratch&);

void sample_one_portable(const SampleArguments<float>& a, int64_t row, Scratch& scratch) {
  sample_one<random_bits_portable>(a, row, scratch);
}

#ifdef FASTRLHF_HAS_AVX2_VERSION
FASTRLHF_AVX2_WITHOUT_FMA void sample_one_avx2(const SampleArguments<float>& a, int64_t row,
                                               Scratch& scratch) {
  sample_one<random_bits_avx2>(a, row, scratch);
}
#endif

}  // namespace

void sample(const SampleArguments<float>& arguments) {
  SampleOne* run = sample_one_portable;
#ifdef FASTRLHF_HAS_AVX2_VERSION
  if (use_avx2()) run = sample_one_avx2;
#endif
#pragma omp parallel if (arguments.rows > 1)
  {
    static thread_local Scratch scratch;
    scratch.hold((arguments.columns + COLUMNS - 1) / COLUMNS * COLUMNS);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < arguments.rows; ++row) run(arguments, row, scratch);
  }
}

}  // namespace fastrlhf
