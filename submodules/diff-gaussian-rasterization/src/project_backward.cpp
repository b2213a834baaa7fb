// Per-Gaussian stages after the pixels' gradients: those of the colour, the projection, the shape.
#include <algorithm>

#include "block_backward.h"
#include "thread_pool.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

// The gradients of the harmonics, which are most of what is written.
template <typename S>
void prefetch_gradients(const Walk<S>& at, int v, const InputGradients<S>& grad) {
  if (!grad.sh) return;
  const std::int64_t size = 3 * at.inputs().sh_rows;
  const S* row = grad.sh.at(v) + at.local() * size;
  for (std::int64_t k = 0; k < size; k += kLine<S>) prefetch_for_write(row + k);
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

// Takes a Gaussian that pixels saw, from what they gathered: what is a copy now, all else in blocks.
// `sum` has the features from wanted.first on.
template <typename S>
void splat_backward(const Walk<S>& at, int v, const S* record, const S* sum, const Wanted& wanted,
                    const InputGradients<S>& grad, BlockBack<S>& block) {
  const Inputs<S>& in = at.inputs();
  const int i = at.local();
  const S* by_feature = sum + (wanted.moments ? kMoments : 0);
  emit(grad.extra, v, i, in.extras, by_feature + (in.channels - wanted.first));
  const bool by_harmonics = wanted.first == 0 && in.sh;
  if (wanted.first == 0 && !in.sh) emit(grad.colors, v, i, in.channels, by_feature);
  if (!wanted.moments && !by_harmonics) return;
  const int k = block.push(at, v, grad);
  if (by_harmonics) {
    block.put(clamp_color_backward(record + kGeometry, by_feature), block.color_grad, k);
  }
  if (wanted.moments) {
    const bool has_depth = wanted.end > in.depth_feature();
    const S grad_depth = has_depth ? by_feature[in.depth_feature()] : S(0);
    block.put_gathered(k, record[kOpacity], sum, grad_depth);
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
    BlockBack<S> block;
    for (int i = begin; i < end; ++i) {
      at.to(i);
      constexpr int ahead = 16;
      if (i + ahead < end) {
        next.to(i + ahead);
        prefetch_gradients(next, v, grads[next.part()]);
      }
      if (i + ahead < end && state.first_slot[i + ahead] < state.first_slot[i + ahead + 1]) {
        if (wanted.first == 0) prefetch_color(next.inputs(), v, next.local());
        prefetch(state.records.data() + std::size_t(i + ahead) * state.record_stride);
      }
      const InputGradients<S>& grad = grads[at.part()];
      if (reduce_pairs(pairs, state.first_slot[i], state.first_slot[i + 1], sum)) {
        const S* record = state.records.data() + std::size_t(i) * state.record_stride;
        splat_backward(at, v, record, sum, wanted, grad, block);
        if (block.count == BlockBack<S>::kSize) block.finish(in, v, camera, wanted);
      } else {
        emit_zeros(at.inputs(), v, at.local(), grad);
      }
    }
    block.finish(in, v, camera, wanted);
  });
}

#define GR_INSTANTIATE(S)                                                                  \
  template void project_view_backward(const Inputs<S>&, int, int, const ViewState<S>&,     \
                                      const PairGradients<S>&, const Wanted&,              \
                                      const InputGradients<S>*);
GR_INSTANTIATE(float)
GR_INSTANTIATE(double)

}  // namespace NATIVE_LEVEL
}  // namespace gr
