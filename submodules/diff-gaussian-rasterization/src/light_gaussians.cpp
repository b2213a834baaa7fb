// Times the bare kernels of Gaussians: a block of them, over and over, from the first cache.
#include <algorithm>
#include <chrono>
#include <memory>

#include "blend_row.h"
#include "block_backward.h"
#include "light.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

constexpr int kSize = Block<float>::kSize;
constexpr int kDegree = 3, kRows = kMaxShCoefficients;
constexpr int kImage = 256;  // its width and height

// The compiler must take what lies there for read and written here.
NATIVE_INLINE void touched(void* memory) {
#if defined(__GNUC__) || defined(__clang__)
  __asm__ volatile("" : : "r"(memory) : "memory");
#else
  *static_cast<volatile char*>(memory);
#endif
}

// A block of small Gaussians, all on the image, and the tensors that they are of.
struct Sample {
  float means[kSize][3], scales[kSize][3], rotations[kSize][4], opacities[kSize];
  float sh[kSize][kRows][3], sh_gradients[kSize][kRows][3];
  float view[16] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
  float projection[16] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, -0.1f, 0};
  float position[3] = {0, 0, 0}, tan_fov[2] = {1, 1};
  Inputs<float> in;
  InputGradients<float> gradients;
  Block<float> block;
  BlockBack<float> back;
  float features[kSize][3];
  int first[kGroups<float>][kSize], end[kGroups<float>][kSize];

  Sample() {
    for (int k = 0; k < kSize; ++k) fill(k);
    in.views = 1;
    in.gaussians = kSize;
    in.width = in.height = kImage;
    in.channels = 3;
    in.sh_rows = kRows;
    in.sh_degree = kDegree;
    in.means.data = means[0];
    in.scales.data = scales[0];
    in.rotations.data = rotations[0];
    in.opacities.data = opacities;
    in.sh.data = sh[0][0];
    in.view.data = view;
    in.projection.data = projection;
    in.position.data = position;
    in.tan_fov.data = tan_fov;
    gradients.sh.data = sh_gradients[0][0];
    const Walk<float> at(in, 0);
    const float gathered[kMoments] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f};
    for (int k = 0; k < kSize; ++k) {
      Walk<float> here = at;
      here.to(k);
      block.push(here, 0, k, 1);
      back.push(here, 0, gradients);
      back.put_gathered(k, opacities[k], gathered, 0.1f);
      back.put({0.1f, 0.2f, 0.3f}, back.color_grad, k);
    }
    project();
    find_footprints();
    find_colors();
  }

  void fill(int k) {
    const float x = float(k % 8) - 3.5f, y = float(k / 8) - 3.5f;
    const float mean[3] = {0.3f * x, 0.3f * y, 4}, rotation[4] = {0.8f, 0.6f, 0, 0};
    for (int d = 0; d < 3; ++d) {
      means[k][d] = mean[d];
      scales[k][d] = 0.02f * float(1 + (k + d) % 3);
      for (int j = 0; j < kRows; ++j) sh[k][j][d] = 0.01f * float(j + d);
    }
    for (int d = 0; d < 4; ++d) rotations[k][d] = rotation[d];
    opacities[k] = 0.5f;
  }

  void project() {
    block.find_covariances(1);
    block.project(in.camera(0), in.tiles_x(), in.tiles_y());
  }
  void find_footprints() { block.find_footprints(); }
  void find_spans() {
    for (int g = 0; g < kGroups<float>; ++g) {
      constexpr int columns = kTile / kGroups<float>;
      for (int k = 0; k < kSize; ++k) {
        const Footprint<float> f = block.footprint_of(k);
        const Span span = row_span(f, kImage / 2 + g * columns, columns, 0, kTileRows);
        first[g][k] = span.first;
        end[g][k] = span.last + 1;
      }
    }
  }
  void find_colors() {
    block.find_basis(kDegree, in.camera(0).position);
    for (int k = 0; k < kSize; ++k) block_color(in, 0, block, k, features[k]);
  }
  void project_back() {
    back.find_covariances(1);
    back.find_gradients<false>(in.camera(0));
    back.find_shape_gradients<false>(1);
  }
  void colors_back() { back.find_color_gradients(0, kDegree, in.camera(0).position); }

  void run(BareWork work) {
    switch (work) {
      case BareWork::kProject: return project();
      case BareWork::kFootprint: return find_footprints();
      case BareWork::kSpans: return find_spans();
      case BareWork::kColor: return find_colors();
      case BareWork::kProjectBack: return project_back();
      default: return colors_back();
    }
  }
};

}  // namespace

double bare_gaussian_ns(std::int64_t count, BareWork work) {
  const std::unique_ptr<Sample> sample(new Sample());  // too large for a stack
  const std::int64_t turns = std::max<std::int64_t>(1, (count + kSize - 1) / kSize);
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t turn = 0; turn < turns; ++turn) {
    touched(sample.get());
    sample->run(work);
    touched(sample.get());
  }
  const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
  return spent.count() / (double(turns) * kSize);
}

}  // namespace NATIVE_LEVEL
}  // namespace gr
