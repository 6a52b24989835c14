// Forward: a group of rows meets the vocabulary a tile of words at a time; the logits of a tile live in one panel of the
// first-level cache, and meet the weights again there if the slopes are wanted. On one core of a Zen 5 the products run
// at 265 GFLOP/s with AVX-512 and at 132 with AVX2, where MKL reaches 108.
#include <cmath>

#include "linear_logprob_panel.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastrlhf {
namespace {

inline int thread_id() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// What the work is cut into: groups of rows by chunks of the vocabulary. Both depend on the shape alone, and the chunks
// are merged in order, so the bits do not depend on the number of threads.
template <class T>
struct Plan {
  int64_t panels, panels_in_a_group, groups, chunks, words_in_a_chunk, tile;
  int64_t turned, straight, logits, moments, hidden, thread_floats;  // of a thread's scratch
  int64_t sums, statistics, panel_floats, item_floats;               // of an item's
  int slopes, threads;

  Plan(const LinearLogprobHead& head, int wanted_slopes, int wanted_threads)
      : slopes(wanted_slopes), threads(wanted_threads) {
    // A megabyte of hidden states, so that a packed tile pays for itself and few rows still make several groups.
    const int64_t most = std::max<int64_t>(
        1, std::min<int64_t>(512, (1 << 18) / std::max<int64_t>(1, head.width)) / T::COLUMNS);
    panels = (head.rows + T::COLUMNS - 1) / T::COLUMNS;
    groups = (panels + most - 1) / most;
    panels_in_a_group = groups ? (panels + groups - 1) / groups : 0;
    tile = words_in_a_tile(head.width);
    const int64_t tiles = (head.words + tile - 1) / tile;
    chunks = groups ? std::max<int64_t>(1, std::min<int64_t>(8 / groups, tiles / 4)) : 1;
    words_in_a_chunk = (tiles + chunks - 1) / chunks * tile;

    turned = round_up(round_up(tile, T::ROWS) * head.width, 16);
    straight = slopes ? round_up(tile * round_up(head.width, T::ROWS), 16) : 0;
    logits = round_up(tile, T::ROWS) * T::COLUMNS;
    moments = slopes > 1 ? logits : 0;
    hidden = panels_in_a_group * head.width * T::COLUMNS;
    thread_floats = round_up(turned + straight + logits + moments + hidden, 16);
    sums = round_up(head.width, T::ROWS) * T::COLUMNS;
    statistics = sizeof(PanelStatistics<T>) / sizeof(float);
    panel_floats = statistics + slopes * sums;
    item_floats = panels_in_a_group * panel_floats;
  }

  int64_t items() const { return groups * chunks; }
  int64_t first_panel(int64_t group) const { return std::min(group * panels_in_a_group, panels); }
  // Items that are not merged with others are finished where they are made, and need no place of their own.
  int64_t kept_items() const { return chunks > 1 ? items() : threads; }
  int64_t floats(int64_t rows) const {
    return round_up(rows, 16) + threads * thread_floats + kept_items() * item_floats;
  }
};

template <class T>
struct Job {
  const LinearLogprobHead& head;
  const LinearLogprobOutputs& out;
  const Plan<T>& plan;
  float* scratch;

  float* target_logits() const { return scratch; }
  // Where the logits of a panel by the words from `first` on are made.
  float* logits(float* of_thread, int64_t panel, int64_t first) const {
    return out.logits ? held_panel<T>(head, out.logits, panel) + first * T::COLUMNS : of_thread;
  }
  float* of_thread(int thread) const {
    return scratch + round_up(head.rows, 16) + thread * plan.thread_floats;
  }
  float* of_panel(int64_t kept_item, int64_t panel_of_group) const {
    return of_thread(plan.threads) + kept_item * plan.item_floats + panel_of_group * plan.panel_floats;
  }
};

// Calls act(target's logit in the panel, its place among all targets' logits) where the target is among `words`.
template <class T, class Act>
FASTRLHF_INLINE void for_targets(const Job<T>& job, int64_t panel, Words words, float* z, Act act) {
  const int64_t first_row = panel * T::COLUMNS;
  const int64_t lanes = std::min<int64_t>(T::COLUMNS, job.head.rows - first_row);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t word = job.head.targets[first_row + lane] - words.first;
    if (word >= 0 && word < words.count)
      act(z[word * T::COLUMNS + lane], job.target_logits()[first_row + lane]);
  }
}

// Takes the targets' logits out of a panel. They join the others at the very end: so 1 - p of a target that is all but
// certain keeps its bits, and the slopes with it.
template <class T>
FASTRLHF_INLINE void take_targets(const Job<T>& job, int64_t panel, Words words, float* z) {
  for_targets(job, panel, words, z, [](float& logit, float& kept) { kept = logit, logit = -INFINITY; });
}

template <class T>
FASTRLHF_INLINE void put_targets_back(const Job<T>& job, int64_t panel, Words words, float* z) {
  for_targets(job, panel, words, z, [](float& logit, float& kept) { logit = kept; });
}

template <class T>
FASTRLHF_INLINE void run_item(const Job<T>& job, int64_t item, int64_t kept_item, int thread) {
  const LinearLogprobHead& head = job.head;
  const Plan<T>& plan = job.plan;
  const int64_t group = item / plan.chunks, chunk = item % plan.chunks, width = head.width;
  const int64_t begin = plan.first_panel(group), end = plan.first_panel(group + 1);
  float* const turned = job.of_thread(thread);
  float* const straight = turned + plan.turned;
  float* const logits = straight + plan.straight;
  float* const moments = logits + plan.logits;
  float* const hidden = moments + plan.moments;

  for (int64_t panel = begin; panel < end; ++panel) {
    float* const state = job.of_panel(kept_item, panel - begin);
    clear(*(PanelStatistics<T>*)state);
    std::fill(state + plan.statistics, state + plan.panel_floats, 0.0f);
    const int64_t row = panel * T::COLUMNS;
    pack_turned<T::COLUMNS>(head.hidden_states + row * width, width, head.rows - row, width,
                            hidden + (panel - begin) * width * T::COLUMNS);
  }

  const int64_t last = std::min(head.words, (chunk + 1) * plan.words_in_a_chunk);
  for (int64_t first = chunk * plan.words_in_a_chunk; first < last; first += plan.tile) {
    const Words words{first, std::min(plan.tile, last - first)};
    const float* const weight = head.weight + first * width;
    const int64_t padded = round_up(words.count, T::ROWS);
    for (int64_t word = 0; word < padded; word += T::ROWS)
      pack_turned<T::ROWS>(weight + word * width, width, words.count - word, width, turned + word * width);
    for (int64_t d = 0; plan.slopes && d < width; d += T::ROWS)
      pack_straight<T::ROWS>(weight + d, width, words.count, width - d, straight + d * words.count);

    for (int64_t panel = begin; panel < end; ++panel) {
      float* const state = job.of_panel(kept_item, panel - begin);
      float* const sums = plan.slopes > 0 ? state + plan.statistics : nullptr;
      float* const sums_of_moments = plan.slopes > 1 ? sums + plan.sums : nullptr;
      const float* const rows = hidden + (panel - begin) * width * T::COLUMNS;
      float* const z = job.logits(logits, panel, first);
      stripes_times_panel<T>(turned, rows, z, padded, width, false);
      finish_logits<T>(head, words, z);
      take_targets(job, panel, words, z);
      accumulate_panel<T>(head, words.count, z, plan.slopes > 1 ? moments : nullptr,
                          *(PanelStatistics<T>*)state, sums, sums_of_moments, width);
      if (job.out.logits) put_targets_back(job, panel, words, z);
      for (int slope = 0; slope < plan.slopes; ++slope)
        stripes_times_panel<T>(straight, slope ? moments : logits, slope ? sums_of_moments : sums,
                               round_up(width, T::ROWS), words.count, true);
    }
  }
}

// Adds the state of a panel over some words to that over the words before, which comes to count both.
template <class T>
FASTRLHF_INLINE void merge(const Plan<T>& plan, float* state, float* other) {
  typedef typename T::Vector V;
  PanelStatistics<T>&a = *(PanelStatistics<T>*)state, &b = *(PanelStatistics<T>*)other;
  Rescale<V> by_a[T::VECTORS], by_b[T::VECTORS];
  for (int c = 0; c < T::VECTORS; ++c) {
    const int lane = c * T::LANES;
    const V top_a = load_vector<V>(a.largest + lane), top_b = load_vector<V>(b.largest + lane);
    const V top = larger<V>(top_a, top_b), centre_b = load_vector<V>(b.centre + lane);
    const V centre = top_a == -INFINITY ? centre_b : load_vector<V>(a.centre + lane);
    by_a[c] = rescale<V>(top_a, top);
    by_b[c] = rescale<V>(top_b, top);
    by_b[c].rise += centre - centre_b;
    store_vector(a.largest + lane, top);
    store_vector(a.centre + lane, centre);
  }
  float* const sums[2] = {state + plan.statistics, other + plan.statistics};
  for (int i = 0; i < 2; ++i) {
    const Rescale<V>* const by = i ? by_b : by_a;
    rescale_lines<T>(by, (i ? b : a).sum, (i ? b : a).moment, 1);
    if (plan.slopes)
      rescale_lines<T>(by, sums[i], plan.slopes > 1 ? sums[i] + plan.sums : nullptr, plan.sums / T::COLUMNS);
  }
  for (int lane = 0; lane < T::COLUMNS; ++lane) {
    a.sum[lane] += b.sum[lane];
    a.moment[lane] += b.moment[lane];
  }
  for (int64_t i = 0; i < plan.slopes * plan.sums; ++i) sums[0][i] += sums[1][i];
}

// From the state of a panel over all words but the targets to the outputs of its rows. In float64: with the target's
// part joined to the others', what is left of differences near zero is exact.
template <class T>
FASTRLHF_INLINE void finish_panel(const Job<T>& job, int64_t panel, const float* state) {
  const LinearLogprobHead& head = job.head;
  const LinearLogprobOutputs& out = job.out;
  const PanelStatistics<T>& others = *(const PanelStatistics<T>*)state;
  const float *const sums = state + job.plan.statistics, *const moments = sums + job.plan.sums;
  for (int lane = 0; lane < T::COLUMNS; ++lane) {
    const int64_t row = panel * T::COLUMNS + lane;
    if (row >= head.rows) return;
    const double target = job.target_logits()[row], old = others.largest[lane], centre = others.centre[lane];
    const double largest = old > target ? old : target, rise = old == -INFINITY ? 0 : largest - old;
    const double factor = old == -INFINITY ? 0 : std::exp(-rise);

    const double e = std::exp(target - largest), from_centre = target - largest - centre;
    const double other_sum = factor * others.sum[lane], sum = other_sum + e;
    const double other_moment = factor * (others.moment[lane] - rise * others.sum[lane]);
    const double mean = (other_moment + e * from_centre) / sum;
    const double logprob = e > other_sum ? -std::log1p(other_sum / e) : target - largest - std::log(sum);
    out.logprobs[row] = (float)logprob;
    // The very same number where no word is likelier than the target: who compares the two asks for that.
    if (out.top_logprobs) out.top_logprobs[row] = (float)(target < old ? -std::log(sum) : logprob);
    out.entropy[row] = (float)(std::log(sum) - centre - mean);
    out.logsumexp[row] = largest + std::log(sum);
    if (!job.plan.slopes) continue;

    const float* const weight = head.weight + head.targets[row] * head.width;
    const double scale = 1 / (sum * head.temperature), slope = cap_slope<float>(head, (float)target);
    const double of_logprob = other_sum * slope,
                 of_entropy = (other_moment - other_sum * from_centre) / sum * e * slope;
    for (int64_t d = 0; d < head.width; ++d) {
      const int64_t at = row * head.width + d, from = d * T::COLUMNS + lane;
      const double other = factor * sums[from];
      out.logprob_slope[at] = (float)((of_logprob * weight[d] - other) * scale);
      if (job.plan.slopes > 1)
        out.entropy_slope[at] =
            (float)((of_entropy * weight[d] + (mean + rise) * other - factor * moments[from]) * scale);
    }
  }
}

// An item, finished at once if nothing is to be merged with it.
template <class T>
FASTRLHF_INLINE void item(const Job<T>& job, int64_t at) {
  const Plan<T>& plan = job.plan;
  const int thread = thread_id();
  const int64_t kept_item = plan.chunks > 1 ? at : thread, group = at / plan.chunks;
  run_item<T>(job, at, kept_item, thread);
  const int64_t begin = plan.first_panel(group), end = plan.first_panel(group + 1);
  for (int64_t panel = begin; plan.chunks == 1 && panel < end; ++panel)
    finish_panel<T>(job, panel, job.of_panel(kept_item, panel - begin));
}

template <class T>
FASTRLHF_INLINE void merge_chunks(const Job<T>& job, int64_t panel) {
  const Plan<T>& plan = job.plan;
  const int64_t group = panel / plan.panels_in_a_group, at = panel % plan.panels_in_a_group;
  float* const state = job.of_panel(group * plan.chunks, at);
  for (int64_t chunk = 1; chunk < plan.chunks; ++chunk)
    merge<T>(plan, state, job.of_panel(group * plan.chunks + chunk, at));
  finish_panel<T>(job, panel, state);
}

void run(const Job<PortableTile>& job, int64_t at) { item(job, at); }
void merge_and_finish(const Job<PortableTile>& job, int64_t panel) { merge_chunks(job, panel); }

#ifdef FASTRLHF_HAS_AVX2_VERSION
FASTRLHF_AVX2 void run(const Job<Avx2Tile>& job, int64_t at) { item(job, at); }
FASTRLHF_AVX2 void merge_and_finish(const Job<Avx2Tile>& job, int64_t panel) { merge_chunks(job, panel); }
FASTRLHF_AVX512 void run(const Job<Avx512Tile>& job, int64_t at) { item(job, at); }
FASTRLHF_AVX512 void merge_and_finish(const Job<Avx512Tile>& job, int64_t panel) { merge_chunks(job, panel); }
#endif

}  // namespace

int64_t linear_logprob_scratch(const LinearLogprobHead& head, int slopes, int threads) {
  return with_tile([&](auto tile) { return Plan<decltype(tile)>(head, slopes, threads).floats(head.rows); });
}

int64_t held_logits(const LinearLogprobHead& head) {
  return with_tile([&](auto tile) {
    typedef decltype(tile) T;
    return round_up(head.rows, T::COLUMNS) * round_up(head.words, T::ROWS);
  });
}

void linear_logprob(const LinearLogprobHead& head, const LinearLogprobOutputs& out, float* scratch,
                    int threads) {
  const int slopes = (out.logprob_slope != nullptr) + (out.entropy_slope != nullptr);
  with_tile([&](auto tile) {
    typedef decltype(tile) T;
    const Plan<T> plan(head, slopes, threads);
    const Job<T> job{head, out, plan, scratch};
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t at = 0; at < plan.items(); ++at) run(job, at);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t panel = 0; panel < (plan.chunks > 1 ? plan.panels : 0); ++panel)
      merge_and_finish(job, panel);
  });
}

}  // namespace fastrlhf
