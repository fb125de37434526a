// float32, float16 and bfloat16: bit patterns, conversions, the unpacked ternary model.
//
// Conversions work on bit patterns and never form a subnormal float32, so they do not depend on a thread's
// flush-to-zero mode.
#pragma once
#include "kernels.hpp"

#include <cfloat>
#include <cstring>
#include <type_traits>

namespace bitconv::BITCONV_ISA {

static_assert(FLT_EVAL_METHOD == 0, "float arithmetic must round to float: 32-bit x86 needs -msse2 -mfpmath=sse");

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

constexpr uint32_t float32_infinity = 0x7f800000;

struct F32 {
    using Bits = uint32_t;
    static constexpr Bits infinity = float32_infinity;
    static uint32_t widen(Bits x) { return x; }
    static Bits round(uint32_t x) { return x; }
};

struct BF16 {
    using Bits = uint16_t;
    static constexpr Bits infinity = 0x7f80;
    static uint32_t widen(Bits x) { return static_cast<uint32_t>(x) << 16; }
    static Bits round(uint32_t x) {
        const uint32_t rounded = x + 0x7fff + (x >> 16 & 1);
        const uint32_t quiet_nan = x | 0x400000;
        return static_cast<Bits>(((x & 0x7fffffff) > float32_infinity ? quiet_nan : rounded) >> 16);
    }
};

struct F16 {
    using Bits = uint16_t;
    static constexpr Bits infinity = 0x7c00;
    static uint32_t widen(Bits x) {
        const uint32_t magnitude = x & 0x7fffu;
        const uint32_t normal = (magnitude << 13) + (112u << 23);             // the exponent's bias grows by 112
        const uint32_t infinite = normal + (112u << 23);                      // infinity and NaN
        const uint32_t small = bits_of(float_of(0x3f000000u | magnitude) - 0.5f);  // magnitude * 2^-24
        const uint32_t quiet = magnitude > infinity ? 0x400000u : 0u;
        const uint32_t value = magnitude >= infinity ? infinite | quiet : magnitude < 0x400 ? small : normal;
        return value | (x & 0x8000u) << 16;
    }
    static Bits round(uint32_t x) {
        const uint32_t magnitude = x & 0x7fffffff;
        const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
        const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;  // the addition rounds
        const uint32_t nan = 0x7e00u | (magnitude >> 13 & 0x3ff);
        uint32_t value = magnitude < 0x38800000u ? small : normal;  // 2^-14, the least normal float16
        value = magnitude >= 0x477ff000u ? infinity : value;        // 65520 rounds to 65536
        value = magnitude > float32_infinity ? nan : value;
        return static_cast<Bits>(value | (x >> 16 & 0x8000));
    }
};

template <class T>
typename T::Bits load(const uint8_t* x, size_t i) {
    typename T::Bits bits;
    std::memcpy(&bits, x + i * sizeof bits, sizeof bits);
    return bits;
}

template <class T>
void store(uint8_t* out, size_t i, typename T::Bits bits) {
    std::memcpy(out + i * sizeof bits, &bits, sizeof bits);
}

/// Calls f with the F32, F16 or BF16 that `type` names.
template <class F>
auto with_float(Float type, F f) {
    switch (type) {
        case Float::f16: return f(F16{});
        case Float::bf16: return f(BF16{});
        default: return f(F32{});
    }
}

/// out[i] = x[i] as float32 bits, exactly.
template <class T>
void widen(const uint8_t* __restrict x, size_t n, uint32_t* __restrict out) {
    size_t i = 0;
#ifdef BITCONV_HALF
    if constexpr (std::is_same_v<T, F16>) {
        for (; i + Half::width <= n; i += Half::width) Half::widen(x + 2 * i, out + i);
    }
#endif
    for (; i < n; ++i) out[i] = T::widen(load<T>(x, i));
}

/// Whether the float is NaN or infinite.
template <class T>
constexpr bool infinite(typename T::Bits bits) {
    return (bits & T::infinity) == T::infinity;
}

/// out[i] = x[i], float32 bits, rounded to T. Returns whether some of them are not finite then.
template <class T>
bool round(const uint32_t* __restrict x, size_t n, uint8_t* __restrict out) {
    typename T::Bits fault = 0;
    size_t i = 0;
#ifdef BITCONV_HALF
    if constexpr (std::is_same_v<T, F16>) {
        for (; i + Half::width <= n; i += Half::width) Half::round(x + i, out + 2 * i);
        for (size_t j = 0; j < i; ++j) fault |= infinite<T>(load<T>(out, j)) ? 1 : 0;
    }
#endif
    for (; i < n; ++i) {
        const typename T::Bits rounded = T::round(x[i]);
        store<T>(out, i, rounded);
        fault |= infinite<T>(rounded) ? 1 : 0;
    }
    return fault != 0;
}

/// The same with x [n] of T already, whose bytes stay as they are.
template <class T>
bool copy(const uint8_t* __restrict x, size_t n, uint8_t* __restrict out) {
    typename T::Bits fault = 0;
    for (size_t i = 0; i < n; ++i) {
        const typename T::Bits bits = load<T>(x, i);
        store<T>(out, i, bits);
        fault |= infinite<T>(bits) ? 1 : 0;
    }
    return fault != 0;
}

template <class From, class To>
int64_t convert(const uint8_t* x, size_t n, uint8_t* out) {
    constexpr size_t step = 512;
    for (size_t i = 0; i < n; i += step) {
        const size_t count = n - i < step ? n - i : step;
        const uint8_t* from = x + i * sizeof(typename From::Bits);
        uint8_t* to = out + i * sizeof(typename To::Bits);
        bool fault;
        if constexpr (std::is_same_v<From, To>) {
            fault = copy<To>(from, count, to);
        } else {
            uint32_t floats[step];
            widen<From>(from, count, floats);
            fault = round<To>(floats, count, to);
        }
        if (fault) {
            while (!infinite<To>(load<To>(out, i))) ++i;
            return static_cast<int64_t>(i);
        }
    }
    return -1;
}

inline int64_t convert_floats(const uint8_t* x, size_t n, Float type, uint8_t* out, Float out_type) {
    return with_float(type, [=](auto from) {
        return with_float(out_type, [=](auto to) { return convert<decltype(from), decltype(to)>(x, n, out); });
    });
}

template <class To>
void scaled(const int8_t* __restrict trits, size_t n, float scale, uint8_t* __restrict out) {
    using Bits = typename To::Bits;
    constexpr int sign = 8 * sizeof(Bits) - 1;
    const Bits value = To::round(bits_of(scale));
    for (size_t i = 0; i < n; ++i) {
        const Bits negative = static_cast<Bits>(Bits{trits[i] < 0} << sign);
        store<To>(out, i, trits[i] == 0 ? Bits{0} : static_cast<Bits>(value ^ negative));
    }
}

inline void dequantize(const int8_t* trits, size_t n, const float* scales, size_t group, uint8_t* out,
                       Float out_type) {
    with_float(out_type, [=](auto to) {
        using To = decltype(to);
        for (size_t i = 0; i < n; i += group) {
            scaled<To>(trits + i, group, scales[i / group], out + i * sizeof(typename To::Bits));
        }
    });
}

}  // namespace bitconv::BITCONV_ISA
