// float16 conversions with NEON, which give the same bits as the portable ones.
#pragma once
#include <arm_neon.h>
#include <cstddef>
#include <cstdint>

#define BITCONV_HALF

namespace bitconv::BITCONV_ISA {

struct Half {
    static constexpr size_t width = 4;
    static void widen(const uint8_t* x, uint32_t* out) {
        const float16x4_t halves = vreinterpret_f16_u8(vld1_u8(x));
        vst1q_u32(out, vreinterpretq_u32_f32(vcvt_f32_f16(halves)));
    }
    static void round(const uint32_t* x, uint8_t* out) {
        const float32x4_t floats = vreinterpretq_f32_u32(vld1q_u32(x));
        vst1_u8(out, vreinterpret_u8_f16(vcvt_f16_f32(floats)));
    }
};

}  // namespace bitconv::BITCONV_ISA
