// The stages of a render that are compiled once per level, see native/isa.h.
#pragma once

#include "rasterizer.h"

namespace gr {
namespace NATIVE_LEVEL {

// Projects all Gaussians of one view; fills records, first_slot, radii and `projected`.
template <typename S>
void project_view(const Inputs<S>& in, int v, int threads, ViewState<S>& state,
                  std::int32_t* radii, Projected<S>& projected);

// Draws the tiles of one view; with `keep` keeps transmittance and last contributors.
template <typename S>
void blend_view(const Inputs<S>& in, int v, int threads, bool keep, ViewState<S>& state,
                const Outputs<S>& out);

template <typename S>
void blend_view_backward(const Inputs<S>& in, int v, int threads, const ViewState<S>& state,
                         const ImageGradients<S>& image, const Wanted& wanted,
                         PairGradients<S>& pairs);

template <typename S>
void project_view_backward(const Inputs<S>& in, int v, int threads, const ViewState<S>& state,
                           const PairGradients<S>& pairs, const Wanted& wanted,
                           const InputGradients<S>* grads);

}  // namespace NATIVE_LEVEL
}  // namespace gr
