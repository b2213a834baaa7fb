// The stages in their order, and the memory that passes from one render to the next.
#include "rasterizer.h"

#include <algorithm>
#include <mutex>

namespace gr {
namespace {

constexpr std::size_t kSpareLimit = 8;

// Buffers given back by finished renders: pages that need not be faulted in again.
template <typename T>
class Spares {
 public:
  static T take() {
    const std::lock_guard<std::mutex> lock(mutex());
    if (items().empty()) return T();
    T item = std::move(items().back());
    items().pop_back();
    return item;
  }
  static void give(T&& item) {
    const std::lock_guard<std::mutex> lock(mutex());
    if (items().size() < kSpareLimit) items().push_back(std::move(item));
  }

 private:
  // Never destroyed: a state may outlive the module at interpreter exit.
  static std::vector<T>& items() {
    static auto* list = new std::vector<T>();
    return *list;
  }
  static std::mutex& mutex() {
    static auto* m = new std::mutex();
    return *m;
  }
};

}  // namespace

NATIVE_EACH_LEVEL(NATIVE_DECLARE)

const native::Levels<Kernels>& levels() {
  static const native::Levels<Kernels> all = {NATIVE_EACH_LEVEL(NATIVE_ENTRY)};
  return all;
}

void Touches::grow(std::size_t count) {
  Buffer<Touch> larger;
  larger.resize(2 * size_ + std::max<std::size_t>(count, kChunk));
  if (size_ != 0) std::copy_n(memory_.data(), size_, larger.data());
  memory_ = std::move(larger);
}

template <typename S>
RenderState<S>::~RenderState() {
  for (ViewState<S>& view : views) Spares<ViewState<S>>::give(std::move(view));
}

template <typename S>
std::unique_ptr<RenderState<S>> render(const Inputs<S>& in, const Outputs<S>& out, bool keep,
                                       int threads) {
  auto state = std::make_unique<RenderState<S>>();
  Projected<S> projected = Spares<Projected<S>>::take();
  const std::size_t chunks = chunk_count(in.gaussians);
  if (projected.touches.size() < chunks) projected.touches.resize(chunks);
  for (int v = 0; v < in.views; ++v) {
    if (keep || v == 0) state->views.push_back(Spares<ViewState<S>>::take());
    ViewState<S>& view = state->views.back();
    std::int32_t* radii = out.radii + std::int64_t(v) * in.gaussians;
    stages(S()).project(in, v, threads, view, radii, projected);
    bin_view(in, threads, projected, view);
    stages(S()).blend(in, v, threads, keep, view, out);
  }
  Spares<Projected<S>>::give(std::move(projected));
  return keep ? std::move(state) : nullptr;
}

template <typename S>
Wanted wanted_of_all(const Inputs<S>& in, const std::vector<InputGradients<S>>& grads,
                     bool has_depth) {
  Wanted wanted = wanted_of(in, grads[0], has_depth);
  for (const InputGradients<S>& grad : grads) {
    const Wanted own = wanted_of(in, grad, has_depth);
    wanted.moments = wanted.moments || own.moments;
    wanted.first = std::min(wanted.first, own.first);
    wanted.end = std::max(wanted.end, own.end);
  }
  return wanted;
}

template <typename S>
void render_backward(const Inputs<S>& in, const RenderState<S>& state,
                     const ImageGradients<S>& image, const std::vector<InputGradients<S>>& grads,
                     int threads) {
  const Wanted wanted = wanted_of_all(in, grads, image.depth != nullptr);
  PairGradients<S> pairs = Spares<PairGradients<S>>::take();
  for (int v = 0; v < in.views; ++v) {
    const ViewState<S>& view = state.views[v];
    stages(S()).blend_backward(in, v, threads, view, image, wanted, pairs);
    stages(S()).project_backward(in, v, threads, view, pairs, wanted, grads.data());
  }
  Spares<PairGradients<S>>::give(std::move(pairs));
}

template <typename S>
void mark_visible(const S* positions, const S* view, int count, bool* visible) {
  for (int i = 0; i < count; ++i) {
    const S* p = positions + 3 * static_cast<std::int64_t>(i);
    visible[i] = view[2] * p[0] + view[6] * p[1] + view[10] * p[2] + view[14] > S(kNearPlane);
  }
}

#define GR_INSTANTIATE(S)                                                                          \
  template struct RenderState<S>;                                                                  \
  template std::unique_ptr<RenderState<S>> render(const Inputs<S>&, const Outputs<S>&, bool, int); \
  template void render_backward(const Inputs<S>&, const RenderState<S>&,                           \
                                const ImageGradients<S>&, const std::vector<InputGradients<S>>&,   \
                                int);                                                              \
  template void mark_visible(const S*, const S*, int, bool*);
GR_INSTANTIATE(float)
GR_INSTANTIATE(double)

}  // namespace gr
