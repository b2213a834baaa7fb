// The table of one level's stages.
#include "stages.h"

#include "light.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

template <typename S>
constexpr Stages<S> kStages = {project_view<S>, blend_view<S>, blend_view_backward<S>,
                               project_view_backward<S>, count_work<S>};

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {kStages<float>, kStages<double>, bare_kernel_ns};

}  // namespace NATIVE_LEVEL
}  // namespace gr
