// Counts the work of a finished render, and times the bare kernels of its pixels.
#include "light.h"

#include <algorithm>
#include <chrono>

#include "blend_row.h"
#include "thread_pool.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

// ---------------------------------------------------------------------------------- counting

// One splat over all rows of a tile.
template <typename S>
struct SplatRows {
  Pack<S> dx[kGroups<S>];
  Pack<S> xx, level;
  alignas(64) S dy[kTileRows], slope[kTileRows], offset[kTileRows];

  SplatRows(const S* record, int tile_x, int tile_y) {
    using P = Pack<S>;
    const P xy = broadcast(record[kQuadXY], P()), yy = broadcast(record[kQuadYY], P());
    xx = broadcast(record[kQuadXX], P());
    level = broadcast(record[kLevel], P());
    for (int g = 0; g < kGroups<S>; ++g) {
      const P column = broadcast(S(tile_x * kTile), P()) + lane_numbers<S>(g);
      dx[g] = broadcast(record[kX], P()) - column;
    }
    for (int y = 0; y < kTileRows; y += P::lanes) {
      const P row = broadcast(S(tile_y * kTileRows + y), P()) + lane_numbers<S>(0);
      const P row_dy = broadcast(record[kY], P()) - row;
      store(dy + y, row_dy);
      store(slope + y, row_slope(xy, row_dy));
      store(offset + y, row_offset(yy, row_dy, level));
    }
  }

  Pack<S> alpha(int y, int g) const {
    return alpha_along<S>(dx[g], xx, broadcast(slope[y], Pack<S>()),
                          broadcast(offset[y], Pack<S>()), level);
  }
};

// A tile while it is gone through: plain pixels, with the decisions of blend.cpp.
template <typename S>
struct CountedTile {
  alignas(64) S transmittance[kPixels];  // negative: has stopped, or is outside of the image
  const S* last;                             // position of the last contributor
  int columns, rows;                         // inside of the image

  CountedTile(const S* last_, int columns_, int rows_)
      : last(last_), columns(std::min(kTile, columns_)), rows(std::min(kTileRows, rows_)) {
    for (int i = 0; i < kPixels; ++i) {
      transmittance[i] = i % kTile < columns && i / kTile < rows ? S(1) : S(-1);
    }
  }

  // The pixels of group g in row y.
  void count_group(const SplatRows<S>& splat, int y, int g, int place, WorkCounts& counts) {
    constexpr int lanes = Pack<S>::lanes;
    alignas(64) S raw[lanes];
    store(raw, splat.alpha(y, g));
    bool on = false;
    for (int lane = 0; lane < lanes && g * lanes + lane < columns; ++lane) {
      const int i = y * kTile + g * lanes + lane;
      if (S(place) <= last[i]) ++counts.looked_at_back;
      S& t = transmittance[i];
      if (t < S(0)) continue;
      on = true;
      ++counts.looked_at;
      if (!(raw[lane] >= S(kMinAlpha))) continue;
      const S next = t - std::min(raw[lane], S(kMaxAlpha)) * t;
      const bool drawn = next >= S(kMinTransmittance);
      counts.blended += drawn;
      t = drawn ? next : S(-1);
    }
    if (on) counts.lanes += lanes;
  }
};

void add(WorkCounts& sums, const WorkCounts& more) {
  sums.looked_at += more.looked_at;
  sums.blended += more.blended;
  sums.lanes += more.lanes;
  sums.looked_at_back += more.looked_at_back;
  sums.listed += more.listed;
  sums.tiles += more.tiles;
  sums.drawn += more.drawn;
}

template <typename S>
WorkCounts count_tile(const Inputs<S>& in, const ViewState<S>& state, int index,
                      std::uint8_t* drawn) {
  const int in_stack = index % tiles_per_stack(in);
  const int tx = in_stack % in.tiles_x(), ty = in_stack / in.tiles_x();
  CountedTile<S> tile(state.last.data() + std::size_t(index) * kPixels,
                      in.width - tx * kTile, in.height - ty * kTileRows);
  WorkCounts counts;
  const std::uint32_t first = state.tile_start[index], end = state.tile_start[index + 1];
  for (std::uint32_t p = first; p < end; ++p) {
    const SplatRows<S> splat(state.record(p), tx, ty);
    const Spans spans = state.pairs[p].spans;
    const std::int64_t before = counts.blended;
    for (int g = 0; g < kGroups<S>; ++g) {
      for (int y = first_row(spans, g); y < std::min(tile.rows, end_row(spans, g)); ++y) {
        tile.count_group(splat, y, g, static_cast<int>(p - first), counts);
      }
    }
    drawn[state.pairs[p].slot] = counts.blended != before;
  }
  return counts;
}

// The splats with tiles, and those that `drawn` (by slot) has in one of them.
template <typename S>
WorkCounts count_splats(int gaussians, const ViewState<S>& state, const std::uint8_t* drawn) {
  WorkCounts counts;
  for (int i = 0; i < gaussians; ++i) {
    const std::uint32_t first = state.first_slot[i], end = state.first_slot[i + 1];
    bool any = false;
    for (std::uint32_t slot = first; slot < end; ++slot) any = any || drawn[slot] != 0;
    counts.listed += first < end;
    counts.tiles += end - first;
    counts.drawn += any;
  }
  return counts;
}

// ------------------------------------------------------------------------------- bare kernels

using B = Pack<float>;

constexpr int kSplats = 32;  // in the first cache
constexpr int kFeatures = 4;  // forward: three colours and depth
constexpr int kGathered = 3;  // backward: the gradient of an image of colours

// One splat for all rows.
struct BareSplat {
  SplatRows<float> rows;
  float feature[kFeatures];
};

struct LookRow {
  int seen = 0;
  explicit LookRow(float) {}
  void visit(const BareSplat& splat, int y) {
    if (any(at_least(splat.rows.alpha(y, 0), broadcast(float(kMinAlpha), B())))) ++seen;
  }
  B result() const { return broadcast(float(seen), B()); }
};

struct BlendRow {
  B t, sums[kFeatures];
  explicit BlendRow(float start) : t(broadcast(start, B())) {
    for (B& sum : sums) sum = broadcast(0.0f, B());
  }
  void visit(const BareSplat& splat, int y) {
    const B raw = splat.rows.alpha(y, 0);
    const B alpha = min(raw, broadcast(float(kMaxAlpha), B())), next = fnma(alpha, t, t);
    const auto drawn = both(at_least(raw, broadcast(float(kMinAlpha), B())),
                            at_least(next, broadcast(float(kMinTransmittance), B())));
    const B weight = masked(drawn, alpha * t);
    t = select(drawn, next, t);
    for (int k = 0; k < kFeatures; ++k) {
      sums[k] = fma(weight, broadcast(splat.feature[k], B()), sums[k]);
    }
  }
  B result() const { return t + sums[0] + sums[1] + sums[2] + sums[3]; }
};

// What a splat gathers is summed over all splats here, which saves what ends a splat.
struct GatherRow {
  B t, behind, gradients[kGathered], feature_sums[kGathered], q, qy, qyy;
  explicit GatherRow(float start) : t(broadcast(start, B())), behind(t), q(t), qy(t), qyy(t) {
    for (B& gradient : gradients) gradient = t;
    for (B& sum : feature_sums) sum = t;
  }
  void visit(const BareSplat& splat, int y) {
    const B zero = broadcast(0.0f, B()), one = broadcast(1.0f, B());
    const B raw = splat.rows.alpha(y, 0);
    const auto drawn = at_least(raw, broadcast(float(kMinAlpha), B()));
    const B alpha = masked(drawn, min(raw, broadcast(float(kMaxAlpha), B())));
    const B inverse = one / (one - alpha);
    t = t * inverse;
    const B weight = alpha * t;
    B along = zero;
    for (int k = 0; k < kGathered; ++k) {
      along = fma(gradients[k], broadcast(splat.feature[k], B()), along);
      feature_sums[k] = fma(weight, gradients[k], feature_sums[k]);
    }
    const B more = masked(drawn, raw * (t * along - behind * inverse));
    behind = fma(weight, along, behind);
    q = q + more;
    const B dy = broadcast(splat.rows.dy[y], B()), more_y = more * dy;
    qy = qy + more_y;
    qyy = fma(more_y, dy, qyy);
  }
  B result() const {
    B all = t + behind + q + qy + qyy;
    for (const B& sum : feature_sums) all = all + sum;
    return all;
  }
};

// Wide, and faint enough that no pixel stops.
BareSplat bare_splat(int i) {
  float record[kGeometry] = {};
  record[kX] = record[kY] = 8.0f + 0.01f * i;
  record[kQuadXX] = record[kQuadYY] = -0.001f;
  record[kQuadXY] = 0.0001f;
  record[kLevel] = std::log2(0.01f);
  BareSplat splat{SplatRows<float>(record, 0, 0), {}};
  for (int k = 0; k < kFeatures; ++k) splat.feature[k] = 0.1f * (k + 1);
  return splat;
}

// Visits every splat with some rows at a time, which do not wait for each other.
template <typename Row, int Rows>
B visit_all(const BareSplat* splats, float start) {
  Row first(start), second(start), third(start), fourth(start);
  for (int s = 0; s < kSplats; ++s) {
    const BareSplat& splat = splats[s];
    first.visit(splat, 0);
    if (Rows > 1) second.visit(splat, 1);
    if (Rows > 2) third.visit(splat, 2);
    if (Rows > 3) fourth.visit(splat, 3);
  }
  return first.result() + second.result() + third.result() + fourth.result();
}

template <typename Row, int Rows>
double time_some_rows(std::int64_t pairs) {
  Buffer<BareSplat> splats;
  splats.resize(kSplats);
  for (int i = 0; i < kSplats; ++i) splats[i] = bare_splat(i);
  const std::int64_t at_once = std::int64_t(kSplats) * Rows * B::lanes;
  const std::int64_t turns = std::max<std::int64_t>(1, (pairs + at_once - 1) / at_once);
  B total = broadcast(0.0f, B());
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t turn = 0; turn < turns; ++turn) {
    total = total + visit_all<Row, Rows>(splats.data(), turn % 2 == 0 ? 1.0f : 0.999f);
  }
  const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
  volatile float kept = sum(total);  // what is computed is used: no compiler may leave it out
  (void)kept;
  return spent.count() / (double(at_once) * double(turns));
}

// With as many rows at a time as take the least: few wait, the sums of many are not all in registers.
template <typename Row>
double time_rows(std::int64_t pairs) {
  return std::min({time_some_rows<Row, 1>(pairs), time_some_rows<Row, 2>(pairs),
                   time_some_rows<Row, 3>(pairs), time_some_rows<Row, 4>(pairs)});
}

// Multiply-adds of registers that do not wait for each other.
double time_multiply_adds(std::int64_t count) {
  constexpr int chains = 12;  // more than the cycles of one times those begun in a cycle
  B sums[chains];
  for (int c = 0; c < chains; ++c) sums[c] = broadcast(0.1f * c, B());
  const B factor = broadcast(0.5f, B()), addend = broadcast(0.25f, B());
  const std::int64_t turns = std::max<std::int64_t>(1, count / (chains * B::lanes));
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t turn = 0; turn < turns; ++turn) {
    for (B& sum : sums) sum = fma(sum, factor, addend);
  }
  const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
  B total = sums[0];
  for (int c = 1; c < chains; ++c) total = total + sums[c];
  volatile float kept = sum(total);
  (void)kept;
  return spent.count() / (double(turns) * chains * B::lanes);
}

}  // namespace

template <typename S>
WorkCounts count_work(const Inputs<S>& in, const ViewState<S>& state, int threads) {
  Buffer<WorkCounts> per_worker;
  Buffer<std::uint8_t> drawn;  // by slot
  drawn.resize(state.tile_start[tile_count(in)]);
  per_worker.resize(threads);
  for (int worker = 0; worker < threads; ++worker) per_worker[worker] = WorkCounts();
  parallel_for(tile_count(in), threads, [&](int t, int worker) {
    add(per_worker[worker], count_tile(in, state, t, drawn.data()));
  });
  WorkCounts all = count_splats(in.gaussians, state, drawn.data());
  for (int worker = 0; worker < threads; ++worker) add(all, per_worker[worker]);
  return all;
}

template WorkCounts count_work(const Inputs<float>&, const ViewState<float>&, int);
template WorkCounts count_work(const Inputs<double>&, const ViewState<double>&, int);

double bare_kernel_ns(std::int64_t count, BareWork work) {
  switch (work) {
    case BareWork::kLook: return time_rows<LookRow>(count);
    case BareWork::kBlend: return time_rows<BlendRow>(count);
    case BareWork::kGather: return time_rows<GatherRow>(count);
    case BareWork::kMultiplyAdd: return time_multiply_adds(count);
    default: return bare_gaussian_ns(count, work);
  }
}

}  // namespace NATIVE_LEVEL
}  // namespace gr
