// What a layer of a model computes beside its products: norms, rounding, rotation, attention, activations. See Steps in
// kernels.hpp. Loops over elements are plain, and vectors of any width give the same bits.
#pragma once
#include "float_matmul.hpp"

#include <cmath>
#include <limits>

namespace bitconv::BITCONV_ISA {

/// A float of the exponent n, and in its lowest bits n + bias.
template <class T>
struct ExpParts;

template <>
struct ExpParts<float> {
    using Bits = uint32_t;
    static constexpr int fraction_bits = 23, degree = 7;
    static constexpr float shift = 0x1.8p+23f;  // added, it leaves no fraction
    static constexpr float log2_e = 0x1.715476p+0f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
    static constexpr float least = -87.0f, most = 88.0f;
};

template <>
struct ExpParts<double> {
    using Bits = uint64_t;
    static constexpr int fraction_bits = 52, degree = 13;
    static constexpr double shift = 0x1.8p+52;
    static constexpr double log2_e = 0x1.71547652b82fep+0, ln2_high = 0x1.62e42fefap-1, ln2_low = 0x1.cf79abc9e3b3ap-40;
    static constexpr double least = -708.0, most = 709.0;
};

/// e^x = 2^n e^r, |r| at most ln 2 / 2, and e^r as its series.
template <class T>
T exponential(T x) {
    using P = ExpParts<T>;
    using Bits = typename P::Bits;
    const T shifted = x * P::log2_e + P::shift;
    const T n = shifted - P::shift;
    const T r = (x - n * P::ln2_high) - n * P::ln2_low;
    T series = 1;
    for (int k = P::degree; k > 0; --k) series = series * r * (T{1} / static_cast<T>(k)) + 1;
    Bits bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    constexpr Bits one = static_cast<Bits>(std::numeric_limits<T>::max_exponent - 1) << P::fraction_bits;
    bits = (bits << P::fraction_bits) + one;
    T power;
    std::memcpy(&power, &bits, sizeof power);
    const T result = series * power;
    return x < P::least ? T{0} : x > P::most ? std::numeric_limits<T>::infinity() : result;
}

/// The sum of n terms in 16 partial sums.
template <class T, class Term>
T sum_of(size_t n, Term term) {
    T lanes[float_lanes] = {};
    size_t i = 0;
    for (; i + float_lanes <= n; i += float_lanes) {
        for (size_t l = 0; l < float_lanes; ++l) lanes[l] += term(i + l);
    }
    for (size_t l = 0; i + l < n; ++l) lanes[l] += term(i + l);
    return fold(lanes);
}

inline void norm(const float* x, const float* weight, size_t n, float eps, float* out) {
    const float mean = sum_of<float>(n, [=](size_t i) { return x[i] * x[i]; }) / static_cast<float>(n);
    const float inverse = 1.0f / std::sqrt(mean + eps);
    for (size_t i = 0; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

/// The divisor is 127 times the inverse, as PyTorch divides a number by a tensor: activations at ties are common, since
/// embeddings in bfloat16 are few different values, and 127 / magnitude would round some of them the other way.
inline float round_activations(const float* x, size_t n, int8_t* out) {
    uint32_t largest = 0;  // magnitudes order as their bit patterns do, and NaN is above all
    for (size_t i = 0; i < n; ++i) {
        const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    const float amax = float_of(largest), least = 1e-5f;
    const float divisor = 1.0f / (amax < least ? least : amax) * 127.0f;
    constexpr float shift = ExpParts<float>::shift;
    for (size_t i = 0; i < n; ++i) {
        float rounded = x[i] * divisor + shift - shift;
        rounded = rounded >= -128.0f ? rounded : -128.0f;  // NaN too
        rounded = rounded <= 127.0f ? rounded : 127.0f;
        out[i] = static_cast<int8_t>(static_cast<int32_t>(rounded));
    }
    return divisor;
}

inline void scale_sums(const int32_t* sums, size_t rows, const float* scales, size_t stride, float divisor, float* out) {
    if (stride == 0) {
        const float factor = scales[0] / divisor;
        for (size_t r = 0; r < rows; ++r) out[r] = static_cast<float>(sums[r]) * factor;
    } else {
        for (size_t r = 0; r < rows; ++r) out[r] = static_cast<float>(sums[r]) * (scales[r * stride] / divisor);
    }
}

inline void add_group(const int32_t* sums, size_t rows, const float* scales, size_t stride, double* totals) {
    for (size_t r = 0; r < rows; ++r) totals[r] += static_cast<double>(sums[r]) * static_cast<double>(scales[r * stride]);
}

inline void rotate(float* head, size_t dims, const float* cos, const float* sin, bool neighbours) {
    const size_t half = dims / 2, step = neighbours ? 2 : 1, apart = neighbours ? 1 : half;
    for (size_t j = 0; j < half; ++j) {
        float *a = head + j * step, *b = a + apart;
        const float x = *a, y = *b;
        *a = x * cos[j] - y * sin[j];
        *b = y * cos[j] + x * sin[j];
    }
}

inline void gate(const float* gate, const float* up, size_t n, Activation activation, float limit, float* out) {
    const auto apply = [=](auto f) {
        for (size_t i = 0; i < n; ++i) {
            const float g = gate[i] > limit ? limit : gate[i];
            const float u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
            out[i] = f(g) * u;
        }
    };
    if (activation == Activation::silu) {
        apply([](float x) { return x / (1.0f + exponential(-x)); });
    } else {
        apply([](float x) {
            const float positive = x < 0.0f ? 0.0f : x;
            return positive * positive;
        });
    }
}

inline void add_scaled(const float* y, size_t n, float scale, float* x) {
    for (size_t i = 0; i < n; ++i) x[i] += y[i] * scale;
}

/// Of a block of floats, and of the sums that grow side by side in registers, so that no addition waits for another.
constexpr size_t block_vectors = attention_block / Floats::width, vectors_side_by_side = 8;
constexpr size_t queries_at_once = block_vectors < vectors_side_by_side ? vectors_side_by_side / block_vectors : 1;

/// For N queries the sum of the blocks number first to end - 1, each times a factor of the query's own, `stride` apart:
/// in 16 partial sums that are folded, and here of those l and every `Lanes` from it on.
template <size_t N, size_t Lanes = 1>
void weighted_sums(const float* factors, size_t stride, const float* blocks, size_t first, size_t end, size_t l,
                   Floats::Vector (&sums)[N * block_vectors]) {
    constexpr size_t vectors = N * block_vectors;
    constexpr size_t lanes = vectors < vectors_side_by_side ? vectors_side_by_side / vectors : 1;
    if constexpr (Lanes * lanes < float_lanes) {
        Floats::Vector others[vectors];
        weighted_sums<N, 2 * Lanes>(factors, stride, blocks, first, end, l, sums);
        weighted_sums<N, 2 * Lanes>(factors, stride, blocks, first, end, l + Lanes, others);
        for (size_t i = 0; i < vectors; ++i) sums[i] = Floats::add(sums[i], others[i]);
    } else {
        Floats::Vector own[lanes * vectors];
        for (Floats::Vector& sum : own) sum = Floats::broadcast(0.0f);
        const auto add = [&](size_t start, auto inside) {
            unrolled<lanes>([&](auto lane) {
                const size_t k = start + lane * Lanes;
                if (!inside && (k < first || k >= end)) return;
                const float* block = blocks + k * attention_block;
                unrolled<block_vectors>([&](auto i) {
                    const Floats::Vector values = Floats::kept(Floats::load_floats(block + i * Floats::width));
                    unrolled<N>([&](auto q) {
                        Floats::Vector& sum = own[lane * vectors + q * block_vectors + i];
                        sum = Floats::multiply_add(sum, Floats::broadcast(factors[q * stride + k]), values);
                    });
                });
            });
        };
        size_t start = first / float_lanes * float_lanes + l;
        if (start < first) {
            add(start, std::false_type{});
            start += float_lanes;
        }
        for (; start + (lanes - 1) * Lanes < end; start += float_lanes) add(start, std::true_type{});
        if (start < end) add(start, std::false_type{});
        for (size_t half = lanes / 2; half > 0; half /= 2) {
            for (size_t i = 0; i < half * vectors; ++i) own[i] = Floats::add(own[i], own[half * vectors + i]);
        }
        for (size_t i = 0; i < vectors; ++i) sums[i] = own[i];
    }
}

inline float soften(float* scores, size_t first, size_t end, float scale) {
    float largest = -std::numeric_limits<float>::infinity();
    for (size_t k = first; k < end; ++k) {
        scores[k] *= scale;
        largest = scores[k] > largest ? scores[k] : largest;
    }
    for (size_t k = first; k < end; ++k) scores[k] = exponential(scores[k] - largest);
    return sum_of<float>(end, [=](size_t k) { return k < first ? 0.0f : scores[k]; });
}

inline void attend(const float* queries, size_t count, size_t dims, const float* keys, const float* values,
                   size_t capacity, size_t first, size_t end, float* scratch, float* out) {
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dims)));
    const size_t room = in_blocks(end);
    const auto store = [](const auto& sums, size_t q, float* to) {
        for (size_t i = 0; i < block_vectors; ++i) Floats::store(to + i * Floats::width, sums[q * block_vectors + i]);
    };
    for (size_t token = first / attention_block * attention_block; token < end; token += attention_block) {
        each_tile<queries_at_once>(count, [=](auto n, size_t q) {
            Floats::Vector sums[n * block_vectors];
            weighted_sums<n>(queries + q * dims, dims, keys + token * dims, 0, dims, 0, sums);
            for (size_t i = 0; i < n; ++i) store(sums, i, scratch + (q + i) * room + token);
        });
    }
    float* totals = scratch + count * room;
    for (size_t q = 0; q < count; ++q) totals[q] = soften(scratch + q * room, first, end, scale);
    float* mixed = totals + count;
    for (size_t d = 0; d < dims; d += attention_block) {
        const size_t now = dims - d < attention_block ? dims - d : attention_block;
        each_tile<queries_at_once>(count, [=](auto n, size_t q) {
            Floats::Vector sums[n * block_vectors];
            weighted_sums<n>(scratch + q * room, room, values + d * capacity, first, end, 0, sums);
            for (size_t i = 0; i < n; ++i) {
                store(sums, i, mixed);
                for (size_t j = 0; j < now; ++j) out[(q + i) * dims + d + j] = mixed[j] / totals[q + i];
            }
        });
    }
}

inline double log_probability(const float* logits, size_t n, size_t token) {
    float largest = logits[0];
    for (size_t i = 0; i < n; ++i) largest = logits[i] > largest ? logits[i] : largest;
    const double most = largest;
    const double sum = sum_of<double>(n, [=](size_t i) { return exponential(static_cast<double>(logits[i]) - most); });
    return static_cast<double>(logits[token]) - most - std::log(sum);
}

}  // namespace bitconv::BITCONV_ISA
