// A pinhole camera as the published interface hands it over: two 4x4 matrices read column-major
// (the tensors hold the transposes), the tangents of the half fields of view, the image size.
#pragma once

#include "gaussian_rasterizer/math.h"

namespace gr {

constexpr double kNearPlane = 0.2;          // view-space z at or below which a Gaussian is culled,
                                            // unless told otherwise
constexpr double kHomogeneousBias = 1e-7;   // added to w before the perspective division

template <typename S>
struct Camera {
  S view[16];         // world to camera, column-major
  S projection[16];   // world to clip space, column-major
  Vec3<S> position;   // world space; only used for the SH direction
  S tan_x, tan_y;     // tangents of the half fields of view
  S focal_x, focal_y; // pixels
  int width, height;  // pixels
  S near_plane;       // view-space z at or below which a Gaussian is culled
};

template <typename S>
GR_HD Camera<S> make_camera(const S* view, const S* projection, const S* position,
                            const S* tan_fov, int width, int height, S near_plane) {
  Camera<S> camera;
  for (int i = 0; i < 16; ++i) {
    camera.view[i] = view[i];
    camera.projection[i] = projection[i];
  }
  camera.position = {position[0], position[1], position[2]};
  camera.tan_x = tan_fov[0];
  camera.tan_y = tan_fov[1];
  camera.focal_x = S(width) / (S(2) * tan_fov[0]);
  camera.focal_y = S(height) / (S(2) * tan_fov[1]);
  camera.width = width;
  camera.height = height;
  camera.near_plane = near_plane;
  return camera;
}

// Row `r` of the 3x3 linear part of the world-to-camera matrix.
template <typename S>
GR_HD Vec3<S> view_row(const Camera<S>& camera, int r) {
  return {camera.view[r], camera.view[4 + r], camera.view[8 + r]};
}

// Row `r` of the linear part of the world-to-clip matrix.
template <typename S>
GR_HD Vec3<S> projection_row(const Camera<S>& camera, int r) {
  return {camera.projection[r], camera.projection[4 + r], camera.projection[8 + r]};
}

template <typename S>
GR_HD Vec3<S> to_camera(const Camera<S>& camera, Vec3<S> p) {
  const S* v = camera.view;
  return {v[0] * p.x + v[4] * p.y + v[8] * p.z + v[12],
          v[1] * p.x + v[5] * p.y + v[9] * p.z + v[13],
          v[2] * p.x + v[6] * p.y + v[10] * p.z + v[14]};
}

}  // namespace gr
