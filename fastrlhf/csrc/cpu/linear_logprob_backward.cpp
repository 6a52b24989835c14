// Backward: the logits of a tile of words by a block of rows are computed again, turned into their gradients, and meet
// the weights (for the hidden states' gradient) and the hidden states (for the weight's). All threads work on one tile:
// on rows for the first two products, on words for the third, so that no sum is shared. Logits that the forward held are
// turned in place instead.
#include "linear_logprob_panel.h"

namespace fastrlhf {
namespace {

// Of a panel whose logits are held, for as many threads each.
constexpr int64_t PARTS = 4;

template <class T>
struct Plan {
  int64_t block_rows, tile, padded_tile, padded_width, panels;  // of the largest block
  int64_t turned, straight, hidden, hidden_turned, gradients, grad_hidden, of_panels;

  Plan(const LinearLogprobHead& head, bool held) {
    // A million floats of hidden states, in two packed copies, with as many of their gradient: 12 MB. Every block
    // reads and writes the whole gradient of the weight.
    const int64_t width = std::max<int64_t>(1, head.width);
    block_rows = std::min<int64_t>(1024, std::max<int64_t>(64, (1 << 20) / width / 64 * 64));
    block_rows = std::min(block_rows, round_up(head.rows, T::COLUMNS));
    tile = words_in_a_tile(width);
    padded_tile = round_up(tile, T::ROWS);
    padded_width = round_up(head.width, T::ROWS);
    panels = block_rows / T::COLUMNS;
    turned = held ? 0 : padded_tile * head.width;
    straight = tile * padded_width;
    hidden_turned = held ? 0 : block_rows * head.width;
    hidden = block_rows * round_up(head.width, T::COLUMNS);
    gradients = held ? 0 : block_rows * padded_tile;
    grad_hidden = block_rows * padded_width;
    of_panels = panels * sizeof(PanelGradients<T>) / sizeof(float);
  }

  int64_t floats() const {
    return turned + straight + hidden + hidden_turned + gradients + grad_hidden + of_panels;
  }
};

// A block of rows and, within it, a tile of words at a time.
template <class T>
struct Job {
  const LinearLogprobHead& head;
  const LinearLogprobGradients& out;
  const Plan<T>& plan;
  float *turned, *straight, *hidden, *hidden_turned, *gradients, *grad_hidden;
  PanelGradients<T>* of_panels;
  int64_t first_row = 0, rows = 0;
  Words words{};

  Job(const LinearLogprobHead& h, const LinearLogprobGradients& o, const Plan<T>& p, float* scratch)
      : head(h), out(o), plan(p) {
    hidden_turned = scratch;
    gradients = hidden_turned + plan.hidden_turned;
    hidden = gradients + plan.gradients;
    grad_hidden = hidden + plan.hidden;
    of_panels = (PanelGradients<T>*)(grad_hidden + plan.grad_hidden);
    turned = grad_hidden + plan.grad_hidden + plan.of_panels;
    straight = turned + plan.turned;
  }

  int64_t panels() const { return (rows + T::COLUMNS - 1) / T::COLUMNS; }
  int64_t padded_rows() const { return panels() * T::COLUMNS; }
  float* grad_hidden_of(int64_t panel) const { return grad_hidden + panel * T::COLUMNS * plan.padded_width; }
  bool adds() const { return first_row > 0 || out.add; }  // to the gradients of weight and bias
  float* gradients_of(int64_t panel) const {
    if (!out.logits) return gradients + panel * T::COLUMNS * plan.padded_tile;
    return held_panel<T>(head, out.logits, first_row / T::COLUMNS + panel) + words.first * T::COLUMNS;
  }
};

// What the panels of a block need for all tiles: hidden states turned, and the gradients of the outputs.
template <class T>
FASTRLHF_INLINE void begin_panel(const Job<T>& job, int64_t panel) {
  const LinearLogprobHead& head = job.head;
  const int64_t row = job.first_row + panel * T::COLUMNS, width = head.width;
  if (!job.out.logits)
    pack_turned<T::COLUMNS>(head.hidden_states + row * width, width, head.rows - row, width,
                            job.hidden_turned + panel * width * T::COLUMNS);
  float* const grad_hidden = job.grad_hidden_of(panel);
  std::fill(grad_hidden, grad_hidden + T::COLUMNS * job.plan.padded_width, 0.0f);
  PanelGradients<T>& of = job.of_panels[panel];
  for (int lane = 0; lane < T::COLUMNS; ++lane) {
    // No row: a probability of zero.
    const bool is_row = row + lane < head.rows;
    const double logsumexp = is_row ? job.out.logsumexp[row + lane] : INFINITY;
    of.logsumexp[lane] = (float)logsumexp;
    of.logsumexp_rest[lane] = is_row ? (float)(logsumexp - of.logsumexp[lane]) : 0;
    of.grad_logprob[lane] = is_row ? job.out.grad_logprobs[row + lane] : 0;
    of.grad_entropy[lane] = is_row && job.out.grad_entropy ? job.out.grad_entropy[row + lane] : 0;
    of.entropy[lane] = is_row ? job.out.entropy[row + lane] : 0;
  }
}

// COLUMNS columns of the block's hidden states, for the product with the gradients of the logits.
template <class T>
FASTRLHF_INLINE void begin_columns(const Job<T>& job, int64_t group) {
  const int64_t d = group * T::COLUMNS, width = job.head.width;
  float* const to = job.hidden + d * job.padded_rows();
  pack_straight<T::COLUMNS>(job.head.hidden_states + job.first_row * width + d, width, job.rows, width - d,
                            to);
  std::fill(to + job.rows * T::COLUMNS, to + job.padded_rows() * T::COLUMNS, 0.0f);
}

template <class T>
FASTRLHF_INLINE void pack_words(const Job<T>& job, int64_t group) {
  const int64_t word = group * T::ROWS, width = job.head.width;
  pack_turned<T::ROWS>(job.head.weight + (job.words.first + word) * width, width, job.words.count - word,
                       width, job.turned + word * width);
}

template <class T>
FASTRLHF_INLINE void pack_width(const Job<T>& job, int64_t group) {
  const int64_t d = group * T::ROWS, width = job.head.width;
  pack_straight<T::ROWS>(job.head.weight + job.words.first * width + d, width, job.words.count, width - d,
                         job.straight + d * job.words.count);
}

// From a panel's finished logits by a part of the tile's words to their gradients, in place.
template <class T>
FASTRLHF_INLINE void logits_to_gradients(const Job<T>& job, int64_t panel, Words words, float* z) {
  const LinearLogprobHead& head = job.head;
  const PanelGradients<T>& of = job.of_panels[panel];
  float target_slopes[T::COLUMNS];
  const int64_t first = job.first_row + panel * T::COLUMNS;
  const int64_t lanes = std::min<int64_t>(T::COLUMNS, head.rows - first);
  const auto word_of = [&](int64_t lane) { return head.targets[first + lane] - words.first; };
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t word = word_of(lane);
    if (word < 0 || word >= words.count) continue;
    const float share = head.softcap > 0 ? z[word * T::COLUMNS + lane] * head.temperature / head.softcap : 0;
    target_slopes[lane] = 1 - share * share;
  }
  logit_gradients<T>(head, words.count, z, of, job.out.grad_entropy != nullptr);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t word = word_of(lane);
    if (word >= 0 && word < words.count)
      z[word * T::COLUMNS + lane] += of.grad_logprob[lane] * target_slopes[lane] / head.temperature;
  }
}

// The gradients of a panel's logits, computed again, and their part in the gradient of its hidden states.
template <class T>
FASTRLHF_INLINE void panel_gradients(const Job<T>& job, int64_t panel) {
  const int64_t width = job.head.width, words = job.words.count;
  float* const gradients = job.gradients_of(panel);
  stripes_times_panel<T>(job.turned, job.hidden_turned + panel * width * T::COLUMNS, gradients,
                         round_up(words, T::ROWS), width, false);
  finish_logits<T>(job.head, job.words, gradients);
  logits_to_gradients(job, panel, job.words, gradients);
  stripes_times_panel<T>(job.straight, gradients, job.grad_hidden_of(panel), job.plan.padded_width, words,
                         true);
}

// A block of held logits has few panels: threads share each, first by words, then by columns of the hidden states.
template <class T>
FASTRLHF_INLINE void held_gradients(const Job<T>& job, int64_t item) {
  const int64_t panel = item / PARTS, part = item % PARTS;
  const int64_t begin = job.words.count * part / PARTS, end = job.words.count * (part + 1) / PARTS;
  logits_to_gradients(job, panel, {job.words.first + begin, end - begin},
                      job.gradients_of(panel) + begin * T::COLUMNS);
}

template <class T>
FASTRLHF_INLINE void hidden_gradients(const Job<T>& job, int64_t item) {
  const int64_t panel = item / PARTS, part = item % PARTS, stripes = job.plan.padded_width / T::ROWS;
  const int64_t begin = stripes * part / PARTS * T::ROWS, end = stripes * (part + 1) / PARTS * T::ROWS;
  stripes_times_panel<T>(job.straight + begin * job.words.count, job.gradients_of(panel),
                         job.grad_hidden_of(panel) + begin * T::COLUMNS, end - begin, job.words.count, true);
}

// The gradients of ROWS words' weights and biases from those of their logits.
template <class T>
FASTRLHF_INLINE void word_gradients(const Job<T>& job, int64_t group) {
  const int64_t word = group * T::ROWS, width = job.head.width;
  const int count = (int)std::min<int64_t>(T::ROWS, job.words.count - word);
  const int64_t first = job.words.first + word;
  for (int64_t d = 0; job.out.grad_weight && d < width; d += T::COLUMNS) {
    const float* hidden = job.hidden + d * job.padded_rows();
    for (int64_t panel = 0; panel < job.panels();) {
      Sums<T> sums;
      const bool add = job.adds() || panel > 0;
      const int64_t end = std::min(job.panels(), panel + PIECE / T::COLUMNS);
      for (; panel < end; ++panel, hidden += T::COLUMNS * T::COLUMNS)
        multiply_add<T, T::COLUMNS, 1>(sums, job.gradients_of(panel) + word * T::COLUMNS, hidden, T::COLUMNS);
      store_sums<T>(sums, job.out.grad_weight + first * width + d, width, count,
                    (int)std::min<int64_t>(T::COLUMNS, width - d), add);
    }
  }
  for (int w = 0; job.out.grad_bias && w < count; ++w) {
    typename T::Vector lanes[T::VECTORS] = {};
    for (int64_t panel = 0; panel < job.panels(); ++panel)
      for (int c = 0; c < T::VECTORS; ++c)
        lanes[c] +=
            load_vector<typename T::Vector>(job.gradients_of(panel) + (word + w) * T::COLUMNS + c * T::LANES);
    double sum = job.adds() ? job.out.grad_bias[first + w] : 0;
    for (int lane = 0; lane < T::COLUMNS; ++lane) sum += lanes[lane / T::LANES][lane % T::LANES];
    job.out.grad_bias[first + w] = (float)sum;
  }
}

template <class T>
FASTRLHF_INLINE void end_panel(const Job<T>& job, int64_t panel) {
  const int64_t width = job.head.width, row = job.first_row + panel * T::COLUMNS;
  const float* const sums = job.grad_hidden_of(panel);
  for (int lane = 0; lane < T::COLUMNS && row + lane < job.head.rows; ++lane)
    for (int64_t d = 0; d < width; ++d)
      job.out.grad_hidden[(row + lane) * width + d] = sums[d * T::COLUMNS + lane];
}

enum Step {
  BEGIN_PANEL,
  BEGIN_COLUMNS,
  PACK_WORDS,
  PACK_WIDTH,
  PANEL_GRADIENTS,
  HELD_GRADIENTS,
  HIDDEN_GRADIENTS,
  WORD_GRADIENTS,
  END_PANEL
};

template <class T>
FASTRLHF_INLINE void step(const Job<T>& job, Step which, int64_t at) {
  switch (which) {
    case BEGIN_PANEL: return begin_panel(job, at);
    case BEGIN_COLUMNS: return begin_columns(job, at);
    case PACK_WORDS: return pack_words(job, at);
    case PACK_WIDTH: return pack_width(job, at);
    case PANEL_GRADIENTS: return panel_gradients(job, at);
    case HELD_GRADIENTS: return held_gradients(job, at);
    case HIDDEN_GRADIENTS: return hidden_gradients(job, at);
    case WORD_GRADIENTS: return word_gradients(job, at);
    case END_PANEL: return end_panel(job, at);
  }
}

void run(const Job<PortableTile>& job, Step which, int64_t at) { step(job, which, at); }

#ifdef FASTRLHF_HAS_AVX2_VERSION
FASTRLHF_AVX2 void run(const Job<Avx2Tile>& job, Step which, int64_t at) { step(job, which, at); }
FASTRLHF_AVX512 void run(const Job<Avx512Tile>& job, Step which, int64_t at) { step(job, which, at); }
#endif

// The steps of one block, called by every thread.
template <class T>
void run_block(Job<T> job) {
  const Plan<T>& plan = job.plan;
  const auto groups = [](int64_t n, int64_t of) { return (n + of - 1) / of; };
  const auto each = [&](Step which, int64_t count) {
#pragma omp for schedule(static) nowait
    for (int64_t at = 0; at < count; ++at) run(job, which, at);
  };
  const bool with_words = job.out.grad_weight || job.out.grad_bias;
  each(BEGIN_PANEL, job.panels());
  each(BEGIN_COLUMNS, job.out.grad_weight ? groups(job.head.width, T::COLUMNS) : 0);
  for (int64_t first = 0; first < job.head.words; first += plan.tile) {
    job.words = {first, std::min(plan.tile, job.head.words - first)};
    const int64_t word_groups = groups(job.words.count, T::ROWS);
    if (job.out.logits) {
#pragma omp barrier
      each(PACK_WIDTH, plan.padded_width / T::ROWS);
      each(HELD_GRADIENTS, job.panels() * PARTS);
#pragma omp barrier
      each(HIDDEN_GRADIENTS, job.panels() * PARTS);
    } else {
      each(PACK_WORDS, word_groups);
      each(PACK_WIDTH, plan.padded_width / T::ROWS);
#pragma omp barrier
      each(PANEL_GRADIENTS, job.panels());
#pragma omp barrier
    }
    each(WORD_GRADIENTS, with_words ? word_groups : 0);
  }
#pragma omp barrier
  each(END_PANEL, job.panels());
}

}  // namespace

int64_t linear_logprob_backward_scratch(const LinearLogprobHead& head, bool held) {
  return with_tile([&](auto tile) { return Plan<decltype(tile)>(head, held).floats(); });
}

void linear_logprob_backward(const LinearLogprobHead& head, const LinearLogprobGradients& gradients,
                             float* scratch, int threads) {
  with_tile([&](auto tile) {
    typedef decltype(tile) T;
    const Plan<T> plan(head, gradients.logits != nullptr);
    Job<T> job(head, gradients, plan, scratch);
    for (job.first_row = 0; job.first_row < head.rows; job.first_row += plan.block_rows) {
      job.rows = std::min(plan.block_rows, head.rows - job.first_row);
#pragma omp parallel num_threads(threads)
      run_block(job);
    }
  });
}

}  // namespace fastrlhf
