// The rasteriser's vectors of one instruction set, as functions for test_simd.py.
#include "gaussian_rasterizer/math.h"
#include "simd.h"

namespace {
using namespace gr::NATIVE_LEVEL;
using F = Pack<float>;
}  // namespace

extern "C" {

int lanes() { return F::lanes; }

// `count` is a multiple of the lanes, and all lie at multiples of 64 bytes.
void powers_of_two(const float* x, long count, float* y) {
  for (long i = 0; i < count; i += F::lanes) store(y + i, exp2_of(load(x + i, F())));
}

void exponentials(const float* x, long count, float* y) {
  for (long i = 0; i < count; ++i) y[i] = gr::exp_of(x[i]);
}

// a b + c, then c - a b.
void multiply_adds(const float* a, const float* b, const float* c, long count, float* sums,
                   float* differences) {
  for (long i = 0; i < count; i += F::lanes) {
    const F x = load(a + i, F()), y = load(b + i, F()), z = load(c + i, F());
    store(sums + i, fma(x, y, z));
    store(differences + i, fnma(x, y, z));
  }
}

// Of groups of four vectors, by four at once and by one after the other.
void sums_of_lanes(const float* x, long count, float* at_once, float* each) {
  for (long i = 0; i < count; i += 4 * F::lanes) {
    F packs[4];
    for (int k = 0; k < 4; ++k) packs[k] = load(x + i + k * F::lanes, F());
    const long first = i / F::lanes;
    sum_each<4>(packs, at_once + first);
    for (int k = 0; k < 4; ++k) each[first + k] = sum(packs[k]);
  }
}

}  // extern "C"
