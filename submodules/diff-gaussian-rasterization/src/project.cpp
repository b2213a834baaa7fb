// Per-Gaussian stages: projection and colour before blending, their gradients after it.
#include <algorithm>
#include <stdexcept>

#include "stages.h"
#include "thread_pool.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

template <typename S>
void geometry_record(const Splat<S>& splat, S opacity, S* record) {
  const Falloff<S> quad = falloff(splat);
  record[kX] = splat.x;
  record[kY] = splat.y;
  record[kQuadXX] = quad.xx;
  record[kQuadXY] = quad.xy;
  record[kQuadYY] = quad.yy;
  record[kOpacity] = opacity;
}

std::uint16_t row_bits(Span span) {
  if (span.first > span.last) return 0;
  return static_cast<std::uint16_t>((2u << span.last) - (1u << span.first));
}

// Appends the tiles that the footprint touches, numbered from `first_tile`.
template <typename S>
void list_touches(const Footprint<S>& f, int tiles_x, int first_tile, Touches& touches) {
  for (int ty = f.rect.y0; ty < f.rect.y1; ++ty) {
    const Span span = tile_span(f, ty);
    for (int tx = span.first; tx <= span.last; ++tx) {
      const std::uint16_t rows = row_bits(row_span(f, tx, ty));
      if (rows != 0) touches.push({static_cast<std::uint32_t>(first_tile + ty * tiles_x + tx), rows});
    }
  }
}

// Goes through the Gaussians of all layers in ascending order and says where the tensors of each are.
template <typename S>
class Walk {
 public:
  Walk(const Inputs<S>& in, int first) : in_(in), layer_(in.layer_of(first)) { to(first); }

  void to(int i) {
    while (layer_ + 1 < in_.layers && i >= in_.layer_start[layer_ + 1]) ++layer_;
    local_ = in_.parts != nullptr ? i - in_.layer_start[layer_] : i;
  }
  int layer() const { return layer_; }
  int local() const { return local_; }  // its row
  int part() const { return in_.parts != nullptr ? layer_ : 0; }
  const Inputs<S>& inputs() const { return in_.parts != nullptr ? in_.parts[layer_] : in_; }

 private:
  const Inputs<S>& in_;
  int layer_, local_ = 0;
};

// A Gaussian that lands on the image.
template <typename S>
struct Candidate {
  int gaussian, layer;
  const Inputs<S>* inputs;  // where its tensors are
  int local;                // its row in them
  Splat<S> splat;
  TileRect rect;
};

template <typename S>
bool find_candidate(const Walk<S>& at, int v, int i, const Camera<S>& camera,
                    Candidate<S>& candidate) {
  candidate.gaussian = i;
  candidate.layer = at.layer();
  candidate.inputs = &at.inputs();
  candidate.local = at.local();
  return project_gaussian(at.inputs(), v, at.local(), camera, candidate.splat, candidate.rect);
}

// Writes the record of a candidate and lists its tiles; false if a feature is not finite.
template <typename S>
bool finish_candidate(int v, const Camera<S>& camera, const Candidate<S>& candidate, S* record,
                      Touches& touches) {
  const Inputs<S>& in = *candidate.inputs;
  const int i = candidate.local;
  const S opacity = input_opacity(in, v, i);
  S* features = record + kGeometry;
  if (!color_features(in, v, i, camera, input_mean(in, v, i), features)) return false;
  if (!further_features(in, v, i, candidate.splat.depth, features)) return false;
  geometry_record(candidate.splat, opacity, record);
  record[kPlane] = in.shared ? S(candidate.layer * in.features()) : S(0);
  const int first_tile = in.shared ? 0 : candidate.layer * in.tiles_x() * in.tiles_y();
  list_touches(footprint(candidate.splat, opacity, candidate.rect), in.tiles_x(), first_tile,
               touches);
  return true;
}

template <typename S>
void prefetch_color(const Inputs<S>& in, int v, std::int64_t i) {
  constexpr std::int64_t line = 64 / sizeof(S);
  const std::int64_t size = in.sh ? 3 * in.sh_rows : in.channels;
  const S* color = (in.sh ? in.sh : in.colors).at(v) + i * size;
  for (std::int64_t at = 0; at < size; at += line) prefetch(color + at);
}

// Projects Gaussians [begin, end): first all shapes, then the colours of those on the image.
template <typename S>
void project_chunk(const Inputs<S>& in, int v, int begin, int end, ViewState<S>& state,
                   std::int32_t* radii, S* depths, Touches& touches) {
  const Camera<S> camera = in.camera(v);
  Candidate<S> found[kChunk];
  int count = 0;
  Walk<S> at(in, begin);
  for (int i = begin; i < end; ++i) {
    radii[i] = 0;
    state.first_slot[i] = 0;
    at.to(i);
    count += find_candidate(at, v, i, camera, found[count]) ? 1 : 0;
  }
  touches.clear();
  for (int c = 0; c < count; ++c) {
    constexpr int ahead = 4;
    if (c + ahead < count) prefetch_color(*found[c + ahead].inputs, v, found[c + ahead].local);
    const int i = found[c].gaussian;
    const std::size_t before = touches.size();
    S* record = state.records.data() + std::size_t(i) * state.record_stride;
    if (!finish_candidate(v, camera, found[c], record, touches)) continue;
    radii[i] = static_cast<std::int32_t>(found[c].splat.radius);
    depths[i] = found[c].splat.depth;
    state.first_slot[i] = static_cast<std::uint32_t>(touches.size() - before);
  }
}

// From numbers of tiles to their running sum.
void accumulate_slots(Buffer<std::uint32_t>& first_slot, int n) {
  std::uint64_t total = 0;
  for (int i = 0; i <= n; ++i) {
    const std::uint32_t count = i < n ? first_slot[i] : 0;
    first_slot[i] = static_cast<std::uint32_t>(total);
    total += count;
  }
  if (total > 0xffffffffu) throw std::length_error("more than 2^32 splat-tile pairs in one view");
}

// Features start at a multiple of 16 bytes; the record of a float RGB splat is one cache line.
int record_stride(int features) {
  const int stride = (kGeometry + features + 3) / 4 * 4;
  return stride == 12 ? 16 : stride;
}

}  // namespace

template <typename S>
void project_view(const Inputs<S>& in, int v, int threads, ViewState<S>& state,
                  std::int32_t* radii, Projected<S>& projected) {
  const int n = in.gaussians;
  state.record_stride = record_stride(in.features());
  state.records.resize(static_cast<std::size_t>(n) * state.record_stride);
  state.first_slot.resize(n + 1);
  projected.depths.resize(n);
  parallel_for(chunk_count(n), threads, [&](int chunk, int) {
    project_chunk(in, v, chunk * kChunk, std::min(n, (chunk + 1) * kChunk), state, radii,
                  projected.depths.data(), projected.touches[chunk]);
  });
  accumulate_slots(state.first_slot, n);
}

// ------------------------------------------------------------------------------------- backward

namespace {

// The gradients of the colour and of the further features; returns the colour's part for the mean.
// `features` are those that were blended, `sum` their gradients from wanted.first on.
template <typename S>
Vec3<S> planes_backward(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                        Vec3<S> mean, const S* features, const S* sum, const Wanted& wanted,
                        const InputGradients<S>& grad) {
  emit(grad.extra, v, i, in.extras, sum + (in.channels - wanted.first));
  if (wanted.first > 0) return {S(0), S(0), S(0)};
  return color_backward(in, v, i, camera, mean, features, sum, grad);
}

// Adds up the tiles of Gaussian i in a fixed order; false if no pixel saw it.
template <typename S>
bool reduce_pairs(const PairGradients<S>& pairs, std::uint32_t first, std::uint32_t last, S* sum) {
  bool any = false;
  for (std::uint32_t slot = first; slot < last; ++slot) {
    if (!pairs.written[slot]) continue;
    const S* values = pairs.values.data() + static_cast<std::size_t>(slot) * pairs.stride;
    for (int k = 0; k < pairs.stride; ++k) sum[k] = any ? sum[k] + values[k] : values[k];
    any = true;
  }
  return any;
}

// The gradients of a Gaussian that pixels saw, from what they gathered.
template <typename S>
void splat_backward(const Walk<S>& at, int v, const Camera<S>& camera, const S* record,
                    const S* sum, const Wanted& wanted, const InputGradients<S>& grad) {
  const Inputs<S>& in = at.inputs();
  const int i = at.local();
  const S* by_feature = sum + (wanted.moments ? kMoments : 0);
  const auto by_planes = [&](Vec3<S> mean) {
    return planes_backward(in, v, i, camera, mean, record + kGeometry, by_feature, wanted, grad);
  };
  if (wanted.moments) {
    const bool has_depth = wanted.end > in.depth_feature();
    const S grad_depth = has_depth ? by_feature[in.depth_feature()] : S(0);
    gaussian_backward(in, v, i, camera, record[kOpacity], sum, grad_depth, grad, by_planes);
  } else {
    by_planes(input_mean(in, v, i));
  }
}

}  // namespace

template <typename S>
void project_view_backward(const Inputs<S>& in, int v, int threads, const ViewState<S>& state,
                           const PairGradients<S>& pairs, const Wanted& wanted,
                           const InputGradients<S>* grads) {
  const Camera<S> camera = in.camera(v);
  const int n = in.gaussians;
  Buffer<S> sums;
  sums.resize(std::size_t(pairs.stride) * threads);
  parallel_for(chunk_count(n), threads, [&](int chunk, int worker) {
    S* sum = sums.data() + std::size_t(pairs.stride) * worker;
    const int begin = chunk * kChunk, end = std::min(n, begin + kChunk);
    Walk<S> at(in, begin), next(in, begin);
    for (int i = begin; i < end; ++i) {
      at.to(i);
      constexpr int ahead = 8;
      if (i + ahead < end && state.first_slot[i + ahead] < state.first_slot[i + ahead + 1]) {
        next.to(i + ahead);
        if (wanted.first == 0) prefetch_color(next.inputs(), v, next.local());
        prefetch(state.records.data() + std::size_t(i + ahead) * state.record_stride);
      }
      const InputGradients<S>& grad = grads[at.part()];
      if (reduce_pairs(pairs, state.first_slot[i], state.first_slot[i + 1], sum)) {
        const S* record = state.records.data() + std::size_t(i) * state.record_stride;
        splat_backward(at, v, camera, record, sum, wanted, grad);
      } else {
        emit_zeros(at.inputs(), v, at.local(), grad);
      }
    }
  });
}

#define GR_INSTANTIATE(S)                                                                       \
  template void project_view(const Inputs<S>&, int, int, ViewState<S>&, std::int32_t*,          \
                             Projected<S>&);                                                    \
  template void project_view_backward(const Inputs<S>&, int, int, const ViewState<S>&,          \
                                      const PairGradients<S>&, const Wanted&,                   \
                                      const InputGradients<S>*);
GR_INSTANTIATE(float)
GR_INSTANTIATE(double)

}  // namespace NATIVE_LEVEL
}  // namespace gr
