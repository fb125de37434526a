// Vectors of float32 on NEON, from floats of any type. See float_matmul.hpp.
#pragma once
#include "../kernels.hpp"

#include <arm_neon.h>

namespace bitconv::BITCONV_ISA {

struct Floats {
    static constexpr size_t width = 4;
    static constexpr size_t rows_at_once = 2;
    using Vector = float32x4_t;

    static Vector load_f32(const uint8_t* p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
    static Vector load_f16(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
    static Vector load_bf16(const uint8_t* p) {
        return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
    }
    static Vector load_floats(const float* p) { return vld1q_f32(p); }
    static Vector kept(Vector v) { return v; }
    static Vector broadcast(float x) { return vdupq_n_f32(x); }
    static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
    static void store(float* p, Vector v) { vst1q_f32(p, v); }
    static Vector multiply_add(Vector sum, Vector a, Vector b) { return add(sum, vmulq_f32(a, b)); }
};

}  // namespace bitconv::BITCONV_ISA
