// Vectors of float32 on NEON. See float_matmul.hpp.
#pragma once
#include <arm_neon.h>
#include <cstddef>

namespace bitconv::BITCONV_ISA {

struct Floats {
    static constexpr size_t width = 4;
    using Vector = float32x4_t;

    static Vector load(const float* p) { return vld1q_f32(p); }
    static void store(float* p, Vector v) { vst1q_f32(p, v); }
    static Vector multiply_add(Vector sum, Vector a, Vector b) { return vaddq_f32(sum, vmulq_f32(a, b)); }
};

}  // namespace bitconv::BITCONV_ISA
