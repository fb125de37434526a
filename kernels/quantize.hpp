// ggml's quantized blocks of dense weights, Q8_0, Q6_K and Q4_K: from floats, and back to float32.
//
// The bytes are those of llama-quantize without an importance matrix: of ggml's reference quantizers
// (quantize_row_*_ref, the same from 2024 to 2026) as GCC 12 compiles them with -O3 -march=native for AVX-512. That
// matters: the searches take the candidate that is better by one rounding, and compilers differ in which products they
// fuse with a sum, which decides one block in a hundred or so. So what is fused is fused here on every instruction
// set, by std::fma, and what is not is not; sums have one order, with a group a lane.
#pragma once
#include "floats.hpp"

#include <cmath>

namespace bitconv::BITCONV_ISA {

constexpr size_t group_lanes = 16;  // groups that are fitted at once
using GroupLanes = float[group_lanes];

constexpr float rounding_shift = 12582912.0f;  // 1.5 * 2^23: a float32 that is added to it loses its fraction

/// The integer that `shifted`, a value plus rounding_shift, stands for, and what ggml takes for it where the value is
/// too large or NaN.
inline int32_t nearest(float shifted) { return static_cast<int32_t>(bits_of(shifted) & 0x7fffff) - 0x400000; }

template <int32_t Low, int32_t High>
int32_t level(float shifted) {
    const int32_t l = nearest(shifted);
    return l < Low ? Low : l > High ? High : l;
}

inline uint16_t to_half(float x) { return F16::round(bits_of(x)); }
inline float from_half(uint16_t x) { return float_of(F16::widen(x)); }

/// Columns of groups: x[i][g] = value i of group g.
template <size_t Size>
void transpose(const float* __restrict x, float (*__restrict columns)[group_lanes]) {
    for (size_t g = 0; g < group_lanes; ++g) {
        for (size_t i = 0; i < Size; ++i) columns[i][g] = x[g * Size + i];
    }
}

/// A type has blocks of `values` in `bytes`, of which `at_once` are quantized together.
/// quantize and dequantize return whether all scales are finite.
struct Q8Block {
    static constexpr size_t values = 32, bytes = 34, at_once = 16;

    static bool quantize(const float* x, size_t blocks, uint8_t* out) {
        bool finite = true;
        for (size_t b = 0; b < blocks; ++b) finite &= quantize_one(x + values * b, out + bytes * b);
        return finite;
    }

    static bool quantize_one(const float* x, uint8_t* out) {
        uint32_t largest = 0;  // bits of floats that are not negative sort as they do
        for (size_t i = 0; i < values; ++i) {
            const uint32_t magnitude = bits_of(x[i]) & 0x7fffffff;
            largest = largest < magnitude ? magnitude : largest;
        }
        const float d = float_of(largest) / 127.0f;
        const float inverse = d != 0 && 1.0f / d < INFINITY ? 1.0f / d : 0.0f;
        store<F16>(out, 0, to_half(d));
        for (size_t i = 0; i < values; ++i) {
            const float value = x[i] * inverse;
            const float even = value + rounding_shift - rounding_shift;
            const float rest = value - even;  // halves are rounded away from zero
            const float up = value > 0 && rest == 0.5f ? 1.0f : 0.0f, down = value < 0 && rest == -0.5f ? 1.0f : 0.0f;
            out[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(even + up - down));
        }
        return !infinite<F16>(to_half(d));
    }

    static bool dequantize(const uint8_t* block, float* out) {
        const uint16_t d = load<F16>(block, 0);
        for (size_t i = 0; i < values; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * from_half(d);
        return !infinite<F16>(d);
    }
};

/// A scale for each of 16 groups of 16, of the levels -32 to 31. inverse: what values times it are the levels found.
struct Q6Fit {
    static constexpr size_t size = 16;
    using Columns = float[size][group_lanes];

    GroupLanes scale, inverse;

    explicit Q6Fit(const float* x) {
        Columns columns, weights, weighted;
        transpose<size>(x, columns);
        for (size_t i = 0; i < size; ++i) {
            for (size_t g = 0; g < group_lanes; ++g) {
                weights[i][g] = columns[i][g] * columns[i][g];
                weighted[i][g] = weights[i][g] * columns[i][g];
            }
        }
        GroupLanes magnitude = {}, extreme = {}, best;
        for (size_t i = 0; i < size; ++i) {
            for (size_t g = 0; g < group_lanes; ++g) {
                const float now = std::fabs(columns[i][g]);
                extreme[g] = now > magnitude[g] ? columns[i][g] : extreme[g];
                magnitude[g] = now > magnitude[g] ? now : magnitude[g];
            }
        }
        GroupLanes products = {}, squares = {};
        for (size_t g = 0; g < group_lanes; ++g) inverse[g] = -32.0f / extreme[g];
        for (size_t i = 0; i < size; ++i) {
            for (size_t g = 0; g < group_lanes; ++g) {
                const float l = static_cast<float>(level<-32, 31>(std::fma(inverse[g], columns[i][g], rounding_shift)));
                products[g] = std::fma(weighted[i][g], l, products[g]);
                squares[g] = std::fma(weights[i][g] * l, l, squares[g]);
            }
        }
        for (size_t g = 0; g < group_lanes; ++g) {
            scale[g] = squares[g] != 0 ? products[g] / squares[g] : 0.0f;
            best[g] = scale[g] * products[g];
        }
        for (int step = -9; step <= 9; ++step) {
            if (step == 0) continue;
            improve(columns, weights, weighted, -std::fma(static_cast<float>(step), 0.1f, 32.0f), extreme, best);
        }
        for (size_t g = 0; g < group_lanes; ++g) scale[g] = magnitude[g] < 1e-15f ? 0.0f : scale[g];
        for (size_t g = 0; g < group_lanes; ++g) inverse[g] = magnitude[g] < 1e-15f ? NAN : inverse[g];
    }

private:
    void improve(const Columns& columns, const Columns& weights, const Columns& weighted, float numerator,
                 const GroupLanes& extreme, GroupLanes& best) {
        GroupLanes products = {}, squares = {}, candidate;
        for (size_t g = 0; g < group_lanes; ++g) candidate[g] = numerator / extreme[g];
        for (size_t i = 0; i < size; ++i) {
            for (size_t g = 0; g < group_lanes; ++g) {
                const float l = static_cast<float>(level<-32, 31>(std::fma(candidate[g], columns[i][g], rounding_shift)));
                products[g] += weighted[i][g] * l;
                squares[g] += weights[i][g] * l * l;
            }
        }
        for (size_t g = 0; g < group_lanes; ++g) {
            const bool better = squares[g] > 0 && products[g] * products[g] > best[g] * squares[g];
            const float now = products[g] / squares[g];
            scale[g] = better ? now : scale[g];
            best[g] = better ? now * products[g] : best[g];
            inverse[g] = better ? candidate[g] : inverse[g];
        }
    }
};

/// 256 values: the low 4 bits of each, the high 2, an int8 scale for each 16, and a float16 that multiplies those.
struct Q6Block {
    static constexpr size_t values = 256, bytes = 210, at_once = 1;

    static bool quantize(const float* x, size_t, uint8_t* out) {
        const Q6Fit fit(x);
        float largest = 0, extreme = 0;
        bool finite = true;
        for (const float scale : fit.scale) {
            finite &= std::fabs(scale) < INFINITY;
            if (std::fabs(scale) > largest) {
                largest = std::fabs(scale);
                extreme = scale;
            }
        }
        std::memset(out, 0, bytes);
        if (largest < 1e-15f) return finite;
        const float inverse = -128.0f / extreme;
        const uint16_t d = to_half(1.0f / inverse);
        store<F16>(out + 208, 0, d);
        uint8_t levels[values];
        for (size_t g = 0; g < 16; ++g) {
            const int32_t rounded = nearest(std::fma(inverse, fit.scale[g], rounding_shift));
            const int8_t scale = static_cast<int8_t>(rounded < 127 ? rounded : 127);
            out[192 + g] = static_cast<uint8_t>(scale);
            const float unit = from_half(d) * static_cast<float>(scale);
            for (size_t i = 16 * g; i < 16 * g + 16; ++i) {
                levels[i] = static_cast<uint8_t>(unit != 0 ? 32 + level<-32, 31>(x[i] / unit + rounding_shift)
                                                 : fit.inverse[g] == fit.inverse[g]
                                                     ? 32 + level<-32, 31>(std::fma(fit.inverse[g], x[i], rounding_shift))
                                                     : 0);
            }
        }
        for (size_t half = 0; half < 2; ++half) {
            const uint8_t* l = levels + 128 * half;
            for (size_t i = 0; i < 64; ++i) out[64 * half + i] = static_cast<uint8_t>((l[i] & 15) | l[64 + i] << 4);
            for (size_t i = 0; i < 32; ++i) {
                const int high = l[i] >> 4 | l[32 + i] >> 4 << 2 | l[64 + i] >> 4 << 4 | l[96 + i] >> 4 << 6;
                out[128 + 32 * half + i] = static_cast<uint8_t>(high);
            }
        }
        return finite && !infinite<F16>(d);
    }

    static bool dequantize(const uint8_t* block, float* out) {
        const uint16_t d = load<F16>(block + 208, 0);
        for (size_t half = 0; half < 2; ++half) {
            for (size_t quarter = 0; quarter < 4; ++quarter) {
                const uint8_t *low = block + 64 * half + 32 * (quarter % 2), *high = block + 128 + 32 * half;
                for (size_t i = 0; i < 32; ++i) {
                    const size_t at = 128 * half + 32 * quarter + i;
                    const int l = (low[i] >> 4 * (quarter / 2) & 15) | (high[i] >> 2 * quarter & 3) << 4;
                    const float unit = from_half(d) * static_cast<float>(static_cast<int8_t>(block[192 + at / 16]));
                    out[at] = unit * static_cast<float>(l - 32);
                }
            }
        }
        return !infinite<F16>(d);
    }
};

/// A scale and a least value for each of 16 groups of 32, of the levels 0 to 15.
/// inverse and base: the levels found are (value - base) * inverse; base is NaN where all are 0.
struct Q4Fit {
    static constexpr size_t size = 32;
    using Columns = float[size][group_lanes];

    GroupLanes scale, least, inverse, base;

    explicit Q4Fit(const float* x) {
        Columns columns, weights, levels;
        transpose<size>(x, columns);
        GroupLanes mean, sum_w, sum_x, most, best;
        for (size_t g = 0; g < group_lanes; ++g) mean[g] = 0;
        for (size_t i = 0; i < size; ++i) {
            for (size_t g = 0; g < group_lanes; ++g) mean[g] += columns[i][g] * columns[i][g];
        }
        for (size_t g = 0; g < group_lanes; ++g) mean[g] = std::sqrt(mean[g] / 32.0f);
        for (size_t i = 0; i < size; ++i) {
            for (size_t g = 0; g < group_lanes; ++g) weights[i][g] = mean[g] + std::fabs(columns[i][g]);
        }
        for (size_t g = 0; g < group_lanes; ++g) {
            least[g] = most[g] = columns[0][g];
            sum_w[g] = weights[0][g];
            sum_x[g] = weights[0][g] * columns[0][g];
        }
        for (size_t i = 1; i < size; ++i) {
            for (size_t g = 0; g < group_lanes; ++g) {
                const float value = columns[i][g];
                least[g] = value < least[g] ? value : least[g];
                most[g] = value > most[g] ? value : most[g];
                sum_w[g] += weights[i][g];
                sum_x[g] += value * weights[i][g];
            }
        }
        GroupLanes flat;
        for (size_t g = 0; g < group_lanes; ++g) {
            least[g] = least[g] > 0 ? 0.0f : least[g];
            base[g] = flat[g] = least[g];
            inverse[g] = 15.0f / (most[g] - least[g]);
            scale[g] = 1.0f / inverse[g];
        }
        for (size_t i = 0; i < size; ++i) find_levels(columns[i], inverse, base, levels[i]);
        find_errors(columns, weights, levels, scale, least, best);
        for (int step = 0; step <= 20; ++step) {
            improve(columns, weights, levels, std::fma(static_cast<float>(step), 0.1f, -1.0f) + 15.0f, most, sum_w, sum_x,
                    best);
        }
        for (size_t g = 0; g < group_lanes; ++g) {
            const bool is_flat = most[g] == flat[g];
            scale[g] = is_flat ? 0.0f : scale[g];
            least[g] = is_flat ? flat[g] : least[g];
            base[g] = is_flat ? NAN : base[g];
        }
    }

private:
    static void find_levels(const GroupLanes& values, const GroupLanes& inverse, const GroupLanes& base,
                            GroupLanes& levels) {
        for (size_t g = 0; g < group_lanes; ++g) {
            const float shifted = std::fma(inverse[g], values[g] - base[g], rounding_shift);
            levels[g] = static_cast<float>(level<0, 15>(shifted));
        }
    }

    static void find_errors(const Columns& columns, const Columns& weights, const Columns& levels,
                            const GroupLanes& scale, const GroupLanes& least, GroupLanes& errors) {
        GroupLanes sum = {};  // in registers
        for (size_t i = 0; i < size; ++i) {
            for (size_t g = 0; g < group_lanes; ++g) {
                const float off = std::fma(scale[g], levels[i][g], least[g]) - columns[i][g];
                sum[g] = std::fma(off * off, weights[i][g], sum[g]);
            }
        }
        std::memcpy(errors, sum, sizeof sum);
    }

    void improve(const Columns& columns, const Columns& weights, Columns& levels, float numerator,
                 const GroupLanes& most, const GroupLanes& sum_w, const GroupLanes& sum_x, GroupLanes& best) {
        GroupLanes candidate, sum_l = {}, sum_ll = {}, sum_xl = {}, new_scale, new_least, determinant, errors;
        for (size_t g = 0; g < group_lanes; ++g) candidate[g] = numerator / (most[g] - least[g]);
        for (size_t i = 0; i < size; ++i) {
            find_levels(columns[i], candidate, least, levels[i]);
            for (size_t g = 0; g < group_lanes; ++g) {
                const float l = levels[i][g], weighted = weights[i][g] * l;
                sum_l[g] += weighted;
                sum_ll[g] = std::fma(l, weighted, sum_ll[g]);
                sum_xl[g] = std::fma(columns[i][g], weighted, sum_xl[g]);
            }
        }
        for (size_t g = 0; g < group_lanes; ++g) {
            determinant[g] = std::fma(sum_ll[g], sum_w[g], -(sum_l[g] * sum_l[g]));
            const float slope = std::fma(-sum_x[g], sum_l[g], sum_xl[g] * sum_w[g]) / determinant[g];
            const float offset = std::fma(sum_x[g], sum_ll[g], -(sum_l[g] * sum_xl[g])) / determinant[g];
            new_scale[g] = offset > 0 ? sum_xl[g] / sum_ll[g] : slope;
            new_least[g] = offset > 0 ? 0.0f : offset;
        }
        find_errors(columns, weights, levels, new_scale, new_least, errors);
        for (size_t g = 0; g < group_lanes; ++g) {
            const bool better = determinant[g] > 0 && errors[g] < best[g];
            inverse[g] = better ? candidate[g] : inverse[g];
            base[g] = better ? least[g] : base[g];
            best[g] = better ? errors[g] : best[g];
            scale[g] = better ? new_scale[g] : scale[g];
            least[g] = better ? new_least[g] : least[g];
        }
    }
};

/// 256 values: two float16, a scale and a least value of 6 bits for each 32 values, which those multiply, and 4 bits a
/// value. Two blocks are fitted at once.
struct Q4Block {
    static constexpr size_t values = 256, bytes = 144, at_once = 2;

    static bool quantize(const float* x, size_t blocks, uint8_t* out) {
        const Q4Fit fit(x);
        bool finite = true;
        for (size_t b = 0; b < blocks; ++b) finite &= quantize_one(x + values * b, fit, 8 * b, out + bytes * b);
        return finite;
    }

    static bool dequantize(const uint8_t* block, float* out) {
        const uint16_t d = load<F16>(block, 0), least = load<F16>(block, 1);
        for (size_t g = 0; g < 8; ++g) {
            const uint8_t *s = block + 4, *low = block + 16 + 32 * (g / 2);
            const int scale = g < 4 ? s[g] & 63 : (s[4 + g] & 15) | s[g - 4] >> 6 << 4;
            const int offset = g < 4 ? s[4 + g] & 63 : s[4 + g] >> 4 | s[g] >> 6 << 4;
            const float unit = from_half(d) * static_cast<float>(scale);
            const float below = from_half(least) * static_cast<float>(offset);
            for (size_t i = 0; i < 32; ++i) {
                out[32 * g + i] = unit * static_cast<float>(low[i] >> 4 * (g % 2) & 15) - below;
            }
        }
        return !infinite<F16>(d) && !infinite<F16>(least);
    }

private:
    /// groups: the first of the block's in `fit`.
    static bool quantize_one(const float* x, const Q4Fit& fit, size_t groups, uint8_t* out) {
        float most_scale = 0, most_below = 0;
        bool finite = true;
        for (size_t g = groups; g < groups + 8; ++g) {
            finite &= std::fabs(fit.scale[g]) < INFINITY && std::fabs(fit.least[g]) < INFINITY;
            most_scale = fit.scale[g] > most_scale ? fit.scale[g] : most_scale;
            most_below = -fit.least[g] > most_below ? -fit.least[g] : most_below;
        }
        const uint16_t d = to_half(most_scale / 63.0f), least = to_half(most_below / 63.0f);
        const float inverse_scale = most_scale > 0 ? 63.0f / most_scale : 0.0f;
        const float inverse_below = most_below > 0 ? 63.0f / most_below : 0.0f;
        std::memset(out, 0, 16);
        store<F16>(out, 0, d);
        store<F16>(out, 1, least);
        uint8_t levels[values];
        for (size_t g = 0; g < 8; ++g) {
            const int scale = six_bits(inverse_scale, fit.scale[groups + g]);
            const int below = six_bits(inverse_below, -fit.least[groups + g]);
            uint8_t* s = out + 4;
            if (g < 4) {
                s[g] = static_cast<uint8_t>(scale);
                s[4 + g] = static_cast<uint8_t>(below);
            } else {
                s[4 + g] = static_cast<uint8_t>((scale & 15) | (below & 15) << 4);
                s[g - 4] = static_cast<uint8_t>(s[g - 4] | scale >> 4 << 6);
                s[g] = static_cast<uint8_t>(s[g] | below >> 4 << 6);
            }
            const float unit = from_half(d) * static_cast<float>(scale);
            const float offset = from_half(least) * static_cast<float>(below);
            const float inverse = fit.inverse[groups + g], base = fit.base[groups + g];
            for (size_t i = 32 * g; i < 32 * g + 32; ++i) {
                levels[i] = static_cast<uint8_t>(unit != 0 ? level<0, 15>((x[i] + offset) / unit + rounding_shift)
                                                 : base == base
                                                     ? level<0, 15>(std::fma(inverse, x[i] - base, rounding_shift))
                                                     : 0);
            }
        }
        for (size_t i = 0; i < 128; ++i) {
            const uint8_t* l = levels + i / 32 * 64 + i % 32;
            out[16 + i] = static_cast<uint8_t>(l[0] | l[32] << 4);
        }
        return finite && !infinite<F16>(d) && !infinite<F16>(least);
    }

    static int six_bits(float inverse, float value) {
        const int rounded = nearest(std::fma(inverse, value, rounding_shift)) & 255;
        return rounded < 63 ? rounded : 63;
    }
};

template <class F>
auto with_block(Quant type, F f) {
    switch (type) {
        case Quant::q6_k: return f(Q6Block{});
        case Quant::q4_k: return f(Q4Block{});
        default: return f(Q8Block{});
    }
}

/// The index of the largest magnitude.
inline size_t largest_of(const float* x, size_t n) {
    size_t largest = 0;
    for (size_t i = 1; i < n; ++i) largest = std::fabs(x[i]) > std::fabs(x[largest]) ? i : largest;
    return largest;
}

inline int64_t quantize(const uint8_t* x, size_t n, Float type, uint8_t* out, Quant out_type) {
    return with_block(out_type, [=](auto block) -> int64_t {
        using B = decltype(block);
        constexpr size_t step = B::values * B::at_once;
        for (size_t i = 0; i < n; i += step) {
            float values[step] = {};
            const size_t count = n - i < step ? n - i : step;
            const int64_t fault = convert_floats(x + i * (type == Float::f32 ? 4 : 2), count, type,
                                                 reinterpret_cast<uint8_t*>(values), Float::f32);
            if (fault >= 0) return static_cast<int64_t>(i) + fault;
            if (!B::quantize(values, count / B::values, out + i / B::values * B::bytes)) {
                return static_cast<int64_t>(i + largest_of(values, count));
            }
        }
        return -1;
    });
}

inline int64_t dequantize_blocks(const uint8_t* packed, size_t n, Quant type, float* out) {
    return with_block(type, [=](auto block) -> int64_t {
        using B = decltype(block);
        for (size_t i = 0; i < n; i += B::values) {
            if (!B::dequantize(packed + i / B::values * B::bytes, out + i)) return static_cast<int64_t>(i);
        }
        return -1;
    });
}

}  // namespace bitconv::BITCONV_ISA
