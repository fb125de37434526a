// Table lookups on NEON. See layouts/lookup_bytes.hpp.
#pragma once
#include <arm_neon.h>
#include <cstddef>
#include <cstdint>

namespace bitconv::BITCONV_ISA {

struct Lookup {
    static constexpr size_t lanes = 1;
    using Bytes = uint8x16_t;
    using Words = int16x8_t;
    struct WordPair {
        Words first, last;
    };

    static Bytes load(const uint8_t* p, size_t) { return vld1q_u8(p); }
    static Words load_words(const uint8_t* p) { return vreinterpretq_s16_u8(vld1q_u8(p)); }
    static Bytes low_nibbles(Bytes b) { return vandq_u8(b, vdupq_n_u8(15)); }
    static Bytes high_nibbles(Bytes b) { return vshrq_n_u8(b, 4); }

    static WordPair lookup(const uint8_t* low, const uint8_t* high, Bytes nibbles) {
        const Bytes l = vqtbl1q_u8(vld1q_u8(low), nibbles), h = vqtbl1q_u8(vld1q_u8(high), nibbles);
        return {vreinterpretq_s16_u8(vzip1q_u8(l, h)), vreinterpretq_s16_u8(vzip2q_u8(l, h))};
    }
    static Words zero() { return vdupq_n_s16(0); }
    static Words add(Words a, Words b) { return vaddq_s16(a, b); }
    static Words negate(Words a, Words mask) { return vsubq_s16(veorq_s16(a, mask), mask); }

    /// -1 where the highest bit is set; moves the next bit there.
    static Words take_sign(Words& signs) {
        const Words mask = vshrq_n_s16(signs, 15);
        signs = vaddq_s16(signs, signs);
        return mask;
    }
    static void add_to(int32_t* out, size_t, Words sums) {
        vst1q_s32(out, vaddw_s16(vld1q_s32(out), vget_low_s16(sums)));
        vst1q_s32(out + 4, vaddw_high_s16(vld1q_s32(out + 4), sums));
    }
};

}  // namespace bitconv::BITCONV_ISA

#include "../layouts/lookup_bytes.hpp"
