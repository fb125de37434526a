// The product of a matrix of floats with float32 vectors: what an embedding is as an output head.
#pragma once
#include "floats.hpp"

namespace bitconv::BITCONV_ISA {

#ifndef BITCONV_SIMD
struct Floats {
    static constexpr size_t width = 1;
    using Vector = float;

    static Vector load_f32(const uint8_t* p) { return float_of(F32::widen(load<F32>(p, 0))); }
    static Vector load_f16(const uint8_t* p) { return float_of(F16::widen(load<F16>(p, 0))); }
    static Vector load_bf16(const uint8_t* p) { return float_of(BF16::widen(load<BF16>(p, 0))); }
    static Vector load_floats(const float* p) { return *p; }
    static void store(float* p, Vector v) { *p = v; }
    static Vector multiply_add(Vector sum, Vector a, Vector b) { return sum + a * b; }
};
#endif

constexpr size_t float_lanes = 16;
constexpr size_t rows_at_once = 16;  // that all vectors pass while they are close

template <class T>
Floats::Vector load_wide(const uint8_t* p) {
    if constexpr (std::is_same_v<T, F16>) return Floats::load_f16(p);
    else if constexpr (std::is_same_v<T, BF16>) return Floats::load_bf16(p);
    else return Floats::load_f32(p);
}

/// sums[v][lane] += the products of w with vector v, `stride` floats apart. `cols` is a multiple of the lanes.
/// Products are rounded before they are added, since not every instruction set has a fused multiply-add.
template <class T, size_t N>
void add_products(const uint8_t* w, const float* x, size_t stride, size_t cols, float* sums) {
    constexpr size_t parts = float_lanes / Floats::width;
    Floats::Vector totals[N * parts];
    for (size_t i = 0; i < N * parts; ++i) totals[i] = Floats::load_floats(sums + i * Floats::width);
    for (size_t k = 0; k < cols; k += float_lanes) {
        for (size_t p = 0; p < parts; ++p) {
            const size_t at = k + p * Floats::width;
            const Floats::Vector weights = load_wide<T>(w + at * sizeof(typename T::Bits));
            for (size_t v = 0; v < N; ++v) {
                const Floats::Vector values = Floats::load_floats(x + v * stride + at);
                totals[v * parts + p] = Floats::multiply_add(totals[v * parts + p], weights, values);
            }
        }
    }
    for (size_t i = 0; i < N * parts; ++i) Floats::store(sums + i * Floats::width, totals[i]);
}

inline float fold(float* lanes) {
    for (size_t half = float_lanes / 2; half > 0; half /= 2) {
        for (size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    return lanes[0];
}

/// Products of `count` rows with vectors `stride` floats apart, N at a time, then the rest one at a time.
template <class T, size_t N>
void multiply(const uint8_t* w, size_t count, const float* x, size_t stride, float* out, size_t rows, size_t cols,
              size_t n) {
    constexpr size_t cols_at_once = 1024;  // N vectors of so many floats stay close while the rows pass
    constexpr size_t item = sizeof(typename T::Bits);
    const size_t whole = cols - cols % float_lanes;
    for (; n >= N; n -= N, x += N * stride, out += N * rows) {
        float sums[rows_at_once][N * float_lanes] = {};
        for (size_t k = 0; k < whole; k += cols_at_once) {
            const size_t now = whole - k < cols_at_once ? whole - k : cols_at_once;
            for (size_t r = 0; r < count; ++r) add_products<T, N>(w + (r * cols + k) * item, x + k, stride, now, sums[r]);
        }
        for (size_t r = 0; r < count; ++r) {
            if (whole < cols) {
                uint8_t rest[float_lanes * item] = {};
                std::memcpy(rest, w + (r * cols + whole) * item, (cols - whole) * item);
                add_products<T, N>(rest, x + whole, stride, float_lanes, sums[r]);
            }
            for (size_t v = 0; v < N; ++v) out[v * rows + r] = fold(sums[r] + v * float_lanes);
        }
    }
    if constexpr (N > 1) multiply<T, 1>(w, count, x, stride, out, rows, cols, n);
}

template <class T>
void multiply_all(const uint8_t* w, const float* x, size_t stride, float* out, size_t rows, size_t cols, size_t n) {
    for (size_t r = 0; r < rows; r += rows_at_once) {
        const size_t count = rows - r < rows_at_once ? rows - r : rows_at_once;
        multiply<T, 4>(w + r * cols * sizeof(typename T::Bits), count, x, stride, out + r, rows, cols, n);
    }
}

/// The vectors are copied with zeros up to a multiple of the lanes.
inline void float_matmul(const uint8_t* w, Float type, const float* x, float* out, size_t rows, size_t cols,
                         size_t n) {
    const size_t stride = (cols + float_lanes - 1) / float_lanes * float_lanes;
    Buffer padded(n * stride * sizeof(float));
    float* vectors = reinterpret_cast<float*>(padded.data());
    for (size_t v = 0; v < n; ++v) std::memcpy(vectors + v * stride, x + v * cols, cols * sizeof(float));
    with_float(type, [=](auto t) { multiply_all<decltype(t)>(w, vectors, stride, out, rows, cols, n); });
}

}  // namespace bitconv::BITCONV_ISA
