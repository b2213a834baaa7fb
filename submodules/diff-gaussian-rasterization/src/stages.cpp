// The table of one level's stages.
#include "stages.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

template <typename S>
constexpr Stages<S> kStages = {project_view<S>, blend_view<S>, blend_view_backward<S>,
                               project_view_backward<S>};

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {kStages<float>, kStages<double>};

}  // namespace NATIVE_LEVEL
}  // namespace gr
