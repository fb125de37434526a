// From a checkpoint's weights to trits: float master weights, and the packed weights of Hugging Face.
#pragma once
#include "floats.hpp"

namespace bitconv::BITCONV_ISA {

template <class T>
double sum_of_magnitudes(const uint8_t* x, size_t n) {
    constexpr size_t lanes = 64;
    double sums[lanes] = {};
    uint32_t floats[lanes];
    const auto add = [&](size_t i, size_t count) {
        widen<T>(x + i * sizeof(typename T::Bits), count, floats);
        for (size_t l = 0; l < count; ++l) sums[l] += static_cast<double>(float_of(floats[l] & 0x7fffffff));
    };
    size_t i = 0;
    for (; i + lanes <= n; i += lanes) add(i, lanes);
    add(i, n - i);
    for (size_t half = lanes / 2; half > 0; half /= 2) {
        for (size_t l = 0; l < half; ++l) sums[l] += sums[l + half];
    }
    return sums[0];
}

inline double abs_sum(const uint8_t* x, size_t n, Float type) {
    return with_float(type, [=](auto t) { return sum_of_magnitudes<decltype(t)>(x, n); });
}

/// The least magnitude, as a bit pattern, whose product with inverse_scale exceeds one half.
template <class T>
typename T::Bits threshold(float inverse_scale) {
    uint32_t low = 0, high = T::infinity;  // infinity exceeds
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        const bool exceeds = float_of(T::widen(static_cast<typename T::Bits>(middle))) * inverse_scale > 0.5f;
        (exceeds ? high : low) = exceeds ? middle : middle + 1;
    }
    return static_cast<typename T::Bits>(low);
}

/// The float32 product grows with the magnitude, and magnitudes order as their bit patterns do. So one compare
/// with the threshold's bit pattern decides what the product would, and exactly so.
template <class T>
void ternarize_with_threshold(const uint8_t* __restrict x, size_t n, float inverse_scale, int8_t* __restrict out) {
    using Bits = typename T::Bits;
    constexpr Bits sign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
    const Bits least = threshold<T>(inverse_scale);
    const Bits span = static_cast<Bits>(T::infinity - least);  // beyond infinity is NaN
    for (size_t i = 0; i < n; ++i) {
        const Bits bits = load<T>(x, i);
        const Bits above = static_cast<Bits>(static_cast<Bits>(bits & ~sign) - least);
        const Bits trit = bits & sign ? static_cast<Bits>(-1) : Bits{1};
        out[i] = static_cast<int8_t>(above <= span ? trit : Bits{0});
    }
}

inline void ternarize(const uint8_t* x, size_t n, Float type, float inverse_scale, int8_t* out) {
    with_float(type, [=](auto t) { ternarize_with_threshold<decltype(t)>(x, n, inverse_scale, out); });
}

/// Magnitudes order as their bit patterns do.
template <class T>
int64_t scales_of_groups(const uint8_t* __restrict x, size_t n, size_t group, float* __restrict scales) {
    using Bits = typename T::Bits;
    constexpr Bits magnitude = static_cast<Bits>(~(Bits{1} << (8 * sizeof(Bits) - 1)));
    for (size_t first = 0; first < n; first += group) {
        const uint8_t* values = x + first * sizeof(Bits);
        Bits largest = 0;
        for (size_t i = 0; i < group; ++i) {
            const Bits bits = static_cast<Bits>(load<T>(values, i) & magnitude);
            largest = bits > largest ? bits : largest;
        }
        Bits others = 0;
        for (size_t i = 0; i < group; ++i) {
            const Bits bits = static_cast<Bits>(load<T>(values, i) & magnitude);
            others |= static_cast<Bits>(bits != 0 && bits != largest);
        }
        if (others || infinite<T>(largest)) {
            for (size_t i = 0;; ++i) {
                const Bits bits = static_cast<Bits>(load<T>(values, i) & magnitude);
                if (bits != 0 && (bits != largest || infinite<T>(bits))) return static_cast<int64_t>(first + i);
            }
        }
        scales[first / group] = float_of(T::widen(largest));
    }
    return -1;
}

inline int64_t ternary_scales(const uint8_t* x, size_t n, Float type, size_t group, float* scales) {
    return with_float(type, [=](auto t) { return scales_of_groups<decltype(t)>(x, n, group, scales); });
}

template <int Quarter>
int64_t unpack_quarter(const uint8_t* __restrict packed, size_t n, int8_t* __restrict out) {
    uint8_t invalid = 0;
    for (size_t i = 0; i < n; ++i) {
        out[i] = static_cast<int8_t>((packed[i] >> 2 * Quarter & 3) - 1);
        invalid |= static_cast<uint8_t>(packed[i] & packed[i] >> 1);
    }
    if (invalid >> 2 * Quarter & 1) {
        for (size_t i = 0;; ++i) {
            if (out[i] == 2) return static_cast<int64_t>(i);
        }
    }
    return -1;
}

inline int64_t unpack_hf(const uint8_t* packed, size_t n, int quarter, int8_t* out) {
    switch (quarter) {
        case 0: return unpack_quarter<0>(packed, n, out);
        case 1: return unpack_quarter<1>(packed, n, out);
        case 2: return unpack_quarter<2>(packed, n, out);
        default: return unpack_quarter<3>(packed, n, out);
    }
}

}  // namespace bitconv::BITCONV_ISA
