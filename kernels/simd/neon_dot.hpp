// Products of codes with activations on NEON, with the dot product instructions where BITCONV_DOTPROD is defined, and
// those of matrices where BITCONV_I8MM is. See dot.hpp.
#pragma once
#include <arm_neon.h>
#include <cstddef>
#include <cstdint>

namespace bitconv::BITCONV_ISA {

struct Dot {
    static constexpr size_t width = 16;
    using Bytes = uint8x16_t;
    using Sum = int32x4_t;

    static Bytes load(const uint8_t* p) { return vld1q_u8(p); }

    static void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

    template <size_t>
    static Bytes load_pieces(const uint8_t* p) { return load(p); }  // a vector is one piece

    template <int Digit>
    static Bytes two_bit(Bytes b) {
        if constexpr (Digit == 3) return vshrq_n_u8(b, 6);
        if constexpr (Digit == 0) return vandq_u8(b, vdupq_n_u8(3));
        if constexpr (Digit == 1 || Digit == 2) return vandq_u8(vshrq_n_u8(b, 2 * Digit), vdupq_n_u8(3));
    }

    static Bytes first_base3_digit(Bytes b) {
        const uint8x16_t masks = vaddq_u8(vcgtq_u8(b, vdupq_n_u8(85)), vcgtq_u8(b, vdupq_n_u8(170)));
        return vsubq_u8(vdupq_n_u8(0), masks);
    }
    static Bytes times_3(Bytes b) { return vaddq_u8(b, vaddq_u8(b, b)); }

#ifdef BITCONV_DOTPROD
    using Partial = int32x4_t;
#ifdef BITCONV_I8MM
    static constexpr size_t sums_at_once = 16;  // four to a register
    static Bytes first_halves(Bytes a, Bytes b) { return halves(vzip1q_u64(wide(a), wide(b))); }
    static Bytes second_halves(Bytes a, Bytes b) { return halves(vzip2q_u64(wide(a), wide(b))); }
    /// Of matrices [2, 8] by rows: codes times the transposed x, [2, 2].
    static Sum multiply_matrices(Sum sum, Bytes codes, Bytes x) {
        return vusmmlaq_s32(sum, codes, vreinterpretq_s8_u8(x));
    }
    static void store(int32_t* p, Sum sum) { vst1q_s32(p, sum); }
#else
    static constexpr size_t sums_at_once = 4;
#endif
    static constexpr size_t chunks_per_partial = 64;  // any number would do
    static Partial zero() { return vdupq_n_s32(0); }
    static Partial multiply_add(Partial sum, Bytes codes, Bytes x) {
        return vdotq_s32(sum, vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(x));
    }
    static Partial add(Partial a, Partial b) { return vaddq_s32(a, b); }
    static Sum widen(Sum sum, Partial partial) { return vaddq_s32(sum, partial); }
#else
    using Partial = int16x8_t;  // one product is at most 2 * 128, a chunk at most 5 pairs of them
    static constexpr size_t sums_at_once = 4;
    static constexpr size_t chunks_per_partial = 12;
    static Partial zero() { return vdupq_n_s16(0); }
    static Partial multiply_add(Partial sum, Bytes codes, Bytes x) {
        const int8x16_t c = vreinterpretq_s8_u8(codes), a = vreinterpretq_s8_u8(x);
        return vmlal_high_s8(vmlal_s8(sum, vget_low_s8(c), vget_low_s8(a)), c, a);
    }
    static Partial add(Partial a, Partial b) { return vaddq_s16(a, b); }
    static Sum widen(Sum sum, Partial partial) { return vpadalq_s16(sum, partial); }
#endif
    static Sum sum_zero() { return vdupq_n_s32(0); }
    static int32_t total(Sum s) { return vaddvq_s32(s); }

#ifdef BITCONV_I8MM
private:
    static uint64x2_t wide(Bytes b) { return vreinterpretq_u64_u8(b); }
    static Bytes halves(uint64x2_t b) { return vreinterpretq_u8_u64(b); }
#endif
};

}  // namespace bitconv::BITCONV_ISA
