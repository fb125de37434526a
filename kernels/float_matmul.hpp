// The product of a matrix of floats with float32 vectors: what an embedding is as an output head.
#pragma once
#include "floats.hpp"

namespace bitconv::BITCONV_ISA {

#ifndef BITCONV_SIMD
struct Floats {
    static constexpr size_t width = 1;
    using Vector = float;

    static Vector load(const float* p) { return *p; }
    static void store(float* p, Vector v) { *p = v; }
    static Vector multiply_add(Vector sum, Vector a, Vector b) { return sum + a * b; }
};
#endif

constexpr size_t float_lanes = 16;
constexpr size_t rows_at_once = 16;  // widened rows that all vectors pass while they are close

/// sums[v][lane] += the products of w with vector v, `stride` floats apart. `cols` is a multiple of the lanes.
/// Products are rounded before they are added, since not every instruction set has a fused multiply-add.
template <size_t N>
void add_products(const float* w, const float* x, size_t stride, size_t cols, float* sums) {
    constexpr size_t parts = float_lanes / Floats::width;
    Floats::Vector totals[N * parts];
    for (size_t i = 0; i < N * parts; ++i) totals[i] = Floats::load(sums + i * Floats::width);
    for (size_t k = 0; k < cols; k += float_lanes) {
        for (size_t p = 0; p < parts; ++p) {
            const Floats::Vector weights = Floats::load(w + k + p * Floats::width);
            for (size_t v = 0; v < N; ++v) {
                const Floats::Vector values = Floats::load(x + v * stride + k + p * Floats::width);
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

/// Products of `count` rows with vectors, N at a time, then the rest one at a time. `cols` is the padded number.
template <size_t N>
void multiply_rows(const float* w, size_t count, const float* x, float* out, size_t rows, size_t cols, size_t n) {
    constexpr size_t cols_at_once = 1024;  // N vectors of so many floats stay close while the rows pass
    for (; n >= N; n -= N, x += N * cols, out += N * rows) {
        float sums[rows_at_once * N * float_lanes] = {};
        for (size_t k = 0; k < cols; k += cols_at_once) {
            const size_t now = cols - k < cols_at_once ? cols - k : cols_at_once;
            for (size_t r = 0; r < count; ++r) {
                add_products<N>(w + r * cols + k, x + k, cols, now, sums + r * N * float_lanes);
            }
        }
        for (size_t r = 0; r < count; ++r) {
            for (size_t v = 0; v < N; ++v) out[v * rows + r] = fold(sums + (r * N + v) * float_lanes);
        }
    }
    if constexpr (N > 1) multiply_rows<1>(w, count, x, out, rows, cols, n);
}

template <class T>
void widened_matmul(const uint8_t* w, const float* x, float* out, size_t rows, size_t cols, size_t n) {
    const size_t padded = (cols + float_lanes - 1) / float_lanes * float_lanes;
    Buffer wide_x(n * padded * sizeof(float)), wide_rows(rows_at_once * padded * sizeof(float));
    float* vectors = reinterpret_cast<float*>(wide_x.data());
    float* block = reinterpret_cast<float*>(wide_rows.data());
    for (size_t v = 0; v < n; ++v) std::memcpy(vectors + v * padded, x + v * cols, cols * sizeof(float));
    for (size_t first = 0; first < rows; first += rows_at_once) {
        const size_t count = rows - first < rows_at_once ? rows - first : rows_at_once;
        for (size_t r = 0; r < count; ++r) {
            widen<T>(w + (first + r) * cols * sizeof(typename T::Bits), cols,
                     reinterpret_cast<uint32_t*>(block + r * padded));
        }
        multiply_rows<4>(block, count, vectors, out + first, rows, padded, n);
    }
}

inline void float_matmul(const uint8_t* w, Float type, const float* x, float* out, size_t rows, size_t cols,
                         size_t n) {
    with_float(type, [=](auto t) { widened_matmul<decltype(t)>(w, x, out, rows, cols, n); });
}

}  // namespace bitconv::BITCONV_ISA
