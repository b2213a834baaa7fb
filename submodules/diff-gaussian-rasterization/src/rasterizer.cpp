// The stages in their order, and the memory that passes from one render to the next.
#include "rasterizer.h"

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

template <typename S>
RenderState<S>::~RenderState() {
  for (ViewState<S>& view : views) Spares<ViewState<S>>::give(std::move(view));
}

template <typename S>
std::unique_ptr<RenderState<S>> render(const Inputs<S>& in, const Outputs<S>& out, int threads) {
  auto state = std::make_unique<RenderState<S>>();
  Projected<S> projected = Spares<Projected<S>>::take();
  for (int v = 0; v < in.views; ++v) {
    state->views.push_back(Spares<ViewState<S>>::take());
    ViewState<S>& view = state->views.back();
    project_view(in, v, threads, view, out.radii + std::int64_t(v) * in.gaussians, projected);
    bin_view(in, threads, projected, view);
    blend_view(in, v, threads, view, out);
  }
  Spares<Projected<S>>::give(std::move(projected));
  return state;
}

template <typename S>
void render_backward(const Inputs<S>& in, const RenderState<S>& state,
                     const ImageGradients<S>& image, const InputGradients<S>& grad, int threads) {
  PairGradients<S> pairs = Spares<PairGradients<S>>::take();
  for (int v = 0; v < in.views; ++v) {
    blend_view_backward(in, v, threads, state.views[v], image, pairs);
    project_view_backward(in, v, threads, state.views[v], pairs, image.depth != nullptr, grad);
  }
  Spares<PairGradients<S>>::give(std::move(pairs));
}

#define GR_INSTANTIATE(S)                                                                    \
  template struct RenderState<S>;                                                            \
  template std::unique_ptr<RenderState<S>> render(const Inputs<S>&, const Outputs<S>&, int); \
  template void render_backward(const Inputs<S>&, const RenderState<S>&,                     \
                                const ImageGradients<S>&, const InputGradients<S>&, int);
GR_INSTANTIATE(float)
GR_INSTANTIATE(double)

}  // namespace gr
