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

/// The least magnitude, as a bit pattern, that is a trit other than 0. is_trit: of a magnitude, once true, always true
/// of larger ones.
template <class T, class IsTrit>
typename T::Bits least_trit(IsTrit is_trit) {
    uint32_t low = 0, high = T::infinity;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        const bool found = is_trit(static_cast<typename T::Bits>(middle));
        (found ? high : low) = found ? middle : middle + 1;
    }
    return static_cast<typename T::Bits>(low);
}

template <class T>
float rounded(float value) {
    return float_of(T::widen(T::round(bits_of(value))));
}

/// The least magnitude whose product with inverse_scale exceeds one half, or with `away` is not below it; weight and
/// product rounded to P. The product of two floats of 16 bits is exact in float32, and so rounded once.
template <class T, class P>
typename T::Bits threshold_of(float inverse_scale, bool away) {
    return least_trit<T>([=](typename T::Bits bits) {
        const float product = rounded<P>(rounded<P>(float_of(T::widen(bits))) * inverse_scale);
        return product > 0.5f || (away && product == 0.5f);
    });
}

inline uint32_t threshold(Float type, float inverse_scale, Float product, bool away) {
    return with_float(type, [=](auto t) {
        return with_float(product, [=](auto p) -> uint32_t {
            return threshold_of<decltype(t), decltype(p)>(inverse_scale, away);
        });
    });
}

/// What is rounded grows with the magnitude, and magnitudes order as their bit patterns do. So one compare with the
/// pattern of the least one that is a trit decides what the product would, and exactly so. Returns how many trits are
/// others from the pattern `other` on.
template <class T>
int64_t ternarize_with_threshold(const uint8_t* __restrict x, size_t n, typename T::Bits least, typename T::Bits other,
                                 int8_t* __restrict out) {
    using Bits = typename T::Bits;
    constexpr Bits sign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
    constexpr size_t step = 4096;  // a count of it fits any Bits
    const Bits span = static_cast<Bits>(T::infinity - least);  // beyond infinity is NaN
    const Bits low = least < other ? least : other;
    const Bits between = static_cast<Bits>((least < other ? other : least) - low);
    int64_t others = 0;
    for (size_t first = 0; first < n; first += step) {
        const size_t last = n - first < step ? n : first + step;
        Bits found = 0;
        for (size_t i = first; i < last; ++i) {
            const Bits bits = load<T>(x, i), magnitude = static_cast<Bits>(bits & ~sign);
            const Bits trit = bits & sign ? static_cast<Bits>(-1) : Bits{1};
            out[i] = static_cast<int8_t>(static_cast<Bits>(magnitude - least) <= span ? trit : Bits{0});
            found = static_cast<Bits>(found + (static_cast<Bits>(magnitude - low) < between ? 1 : 0));
        }
        others += found;
    }
    return others;
}

inline int64_t ternarize_from(const uint8_t* x, size_t n, Float type, uint32_t least, uint32_t other, int8_t* out) {
    return with_float(type, [=](auto t) {
        using T = decltype(t);
        using Bits = typename T::Bits;
        return ternarize_with_threshold<T>(x, n, static_cast<Bits>(least), static_cast<Bits>(other), out);
    });
}

inline void ternarize(const uint8_t* x, size_t n, Float type, float inverse_scale, int8_t* out) {
    const uint32_t least = threshold(type, inverse_scale, Float::f32, false);
    ternarize_from(x, n, type, least, least, out);
}

template <class T>
void count_of_magnitudes(const uint8_t* x, size_t n, const uint32_t* least, size_t count, int64_t* out) {
    using Bits = typename T::Bits;
    constexpr Bits magnitude = static_cast<Bits>(~(Bits{1} << (8 * sizeof(Bits) - 1)));
    constexpr size_t step = 4096;  // stays in the first cache, and a count of it in any Bits
    for (size_t k = 0; k < count; ++k) out[k] = 0;
    Bits values[step];
    for (size_t first = 0; first < n; first += step) {
        const size_t size = n - first < step ? n - first : step;
        for (size_t i = 0; i < size; ++i) values[i] = static_cast<Bits>(load<T>(x, first + i) & magnitude);
        for (size_t k = 0; k < count; ++k) {
            const Bits from = static_cast<Bits>(least[k]);
            Bits found = 0;
            for (size_t i = 0; i < size; ++i) found = static_cast<Bits>(found + (values[i] >= from ? 1 : 0));
            out[k] += found;
        }
    }
}

inline void count_from(const uint8_t* x, size_t n, Float type, const uint32_t* least, size_t count, int64_t* out) {
    with_float(type, [=](auto t) { count_of_magnitudes<decltype(t)>(x, n, least, count, out); });
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

/// The rule of ternary-qat: the largest magnitude of a group, and 1e-8 at least, divides the group's weights.
template <class T>
int64_t ternarize_groups(const uint8_t* x, size_t n, size_t group, int8_t* out, float* scales) {
    using Bits = typename T::Bits;
    constexpr Bits magnitude = static_cast<Bits>(~(Bits{1} << (8 * sizeof(Bits) - 1)));
    for (size_t first = 0; first < n; first += group) {
        const uint8_t* values = x + first * sizeof(Bits);
        Bits largest = 0;
        for (size_t i = 0; i < group; ++i) {
            const Bits bits = static_cast<Bits>(load<T>(values, i) & magnitude);
            largest = bits > largest ? bits : largest;
        }
        if (infinite<T>(largest)) return static_cast<int64_t>(first);
        const float amax = float_of(T::widen(largest)), floor = rounded<T>(1e-8f), scale = amax > floor ? amax : floor;
        const Bits least = least_trit<T>([=](Bits bits) {
            return bits > 0 && rounded<T>(float_of(T::widen(bits)) / scale) > 0.5f;
        });
        ternarize_with_threshold<T>(values, group, least, least, out + first);
        scales[first / group] = largest >= least ? scale : 0.0f;
    }
    return -1;
}

inline int64_t ternarize_absmax(const uint8_t* x, size_t n, Float type, size_t group, int8_t* out, float* scales) {
    return with_float(type, [=](auto t) { return ternarize_groups<decltype(t)>(x, n, group, out, scales); });
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
