// The product of a matrix of floats with float32 vectors: what an embedding is as an output head.
#pragma once
#include "floats.hpp"
#include "unrolled.hpp"

namespace bitconv::BITCONV_ISA {

#ifndef BITCONV_SIMD
struct Floats {
    static constexpr size_t width = 1;
    static constexpr size_t rows_at_once = 2;  // whose sums with two vectors stay in registers
    using Vector = float;

    static Vector load_f32(const uint8_t* p) { return float_of(F32::widen(load<F32>(p, 0))); }
    static Vector load_f16(const uint8_t* p) { return float_of(F16::widen(load<F16>(p, 0))); }
    static Vector load_bf16(const uint8_t* p) { return float_of(BF16::widen(load<BF16>(p, 0))); }
    static Vector load_floats(const float* p) { return *p; }
    static Vector kept(Vector v) { return v; }
    static Vector broadcast(float x) { return x; }
    static Vector add(Vector a, Vector b) { return a + b; }
    static void store(float* p, Vector v) { *p = v; }
    static Vector multiply_add(Vector sum, Vector a, Vector b) { return sum + a * b; }
};
#endif

constexpr size_t float_lanes = 16;

template <class T>
Floats::Vector load_wide(const uint8_t* p) {
    if constexpr (std::is_same_v<T, F16>) return Floats::load_f16(p);
    else if constexpr (std::is_same_v<T, BF16>) return Floats::load_bf16(p);
    else return Floats::load_f32(p);
}

/// sums[r * row_sums + v * 16 + lane] += the products of R rows of w, `row_bytes` apart, with N vectors, `stride` floats
/// apart. `cols` is a multiple of the lanes. Products are rounded before they are added, since not every instruction set
/// has a fused multiply-add.
template <class T, size_t R, size_t N>
void add_products(const uint8_t* w, size_t row_bytes, const float* x, size_t stride, size_t cols, float* sums,
                  size_t row_sums) {
    constexpr size_t parts = float_lanes / Floats::width;
    Floats::Vector totals[R * N * parts];
    const auto sum_of_total = [=](size_t i) {
        return sums + i / (N * parts) * row_sums + i / parts % N * float_lanes + i % parts * Floats::width;
    };
    unrolled<R * N * parts>([&](auto i) { totals[i] = Floats::load_floats(sum_of_total(i)); });
    for (size_t k = 0; k < cols; k += float_lanes) {
        unrolled<parts>([&](auto p) {
            const size_t at = k + p * Floats::width;
            Floats::Vector values[N];
            unrolled<N>([&](auto v) { values[v] = Floats::kept(Floats::load_floats(x + v * stride + at)); });
            unrolled<R>([&](auto r) {
                const Floats::Vector weights = Floats::kept(load_wide<T>(w + r * row_bytes + at * sizeof(typename T::Bits)));
                unrolled<N>([&](auto v) {
                    constexpr size_t i = (r * N + v) * parts + p;
                    totals[i] = Floats::multiply_add(totals[i], weights, values[v]);
                });
            });
        });
    }
    unrolled<R * N * parts>([&](auto i) { Floats::store(sum_of_total(i), totals[i]); });
}

template <class T>
T fold(T* lanes) {
    for (size_t half = float_lanes / 2; half > 0; half /= 2) {
        for (size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    return lanes[0];
}

/// The products of one vector: limited by reading the rows.
template <class T, size_t R>
void multiply_vector(const uint8_t* w, const float* x, float* out, size_t rows, size_t cols) {
    const size_t whole = cols - cols % float_lanes, item = sizeof(typename T::Bits), row_bytes = cols * item;
    for (; rows >= R; rows -= R, w += R * row_bytes, out += R) {
        float sums[R * float_lanes] = {};
        add_products<T, R, 1>(w, row_bytes, x, 0, whole, sums, float_lanes);
        for (size_t r = 0; r < R; ++r) {
            if (whole < cols) {
                uint8_t rest[float_lanes * item] = {};
                std::memcpy(rest, w + r * row_bytes + whole * item, (cols - whole) * item);
                add_products<T, 1, 1>(rest, 0, x + whole, 0, float_lanes, sums + r * float_lanes, 0);
            }
            out[r] = fold(sums + r * float_lanes);
        }
    }
    if constexpr (R > 1) multiply_vector<T, R / 2>(w, x, out, rows, cols);
}

/// The products of several: a block of rows, as float32, stays in the first cache while the vectors pass, and those in
/// the second while the blocks do.
template <class T>
void multiply_vectors(const uint8_t* w, const float* x, size_t stride, float* out, size_t out_stride, size_t rows,
                      size_t cols, size_t n) {
    constexpr size_t rows_at_once = 16, cols_at_once = 256, most = 32, item = sizeof(typename T::Bits);
    Buffer buffer((rows_at_once * cols_at_once + rows_at_once * most * float_lanes) * sizeof(float));
    float* block = reinterpret_cast<float*>(buffer.data());
    float* sums = block + rows_at_once * cols_at_once;
    for (size_t first = 0; first < n; first += most) {
        const size_t count = n - first < most ? n - first : most;
        for (size_t r = 0; r < rows; r += rows_at_once) {
            const size_t now = rows - r < rows_at_once ? rows - r : rows_at_once;
            std::memset(sums, 0, rows_at_once * most * float_lanes * sizeof *sums);
            for (size_t k = 0; k < cols; k += cols_at_once) {
                const size_t taken = cols - k < cols_at_once ? cols - k : cols_at_once;
                const size_t padded = (taken + float_lanes - 1) / float_lanes * float_lanes;
                for (size_t i = 0; i < now; ++i) {
                    float* row = block + i * cols_at_once;
                    std::memset(row + taken, 0, (padded - taken) * sizeof *row);
                    widen<T>(w + ((r + i) * cols + k) * item, taken, reinterpret_cast<uint32_t*>(row));
                }
                const auto multiply = [&](auto rows_now, auto vectors, size_t i, size_t v) {
                    const uint8_t* from = reinterpret_cast<const uint8_t*>(block + i * cols_at_once);
                    add_products<F32, rows_now, vectors>(from, cols_at_once * sizeof *block, x + (first + v) * stride + k,
                                                         stride, padded, sums + (i * most + v) * float_lanes,
                                                         most * float_lanes);
                };
                constexpr std::integral_constant<size_t, 1> one;
                constexpr std::integral_constant<size_t, 2> two;
                constexpr std::integral_constant<size_t, Floats::rows_at_once> several;
                size_t v = 0;
                for (; v + 2 <= count; v += 2) {
                    size_t i = 0;
                    for (; i + several <= now; i += several) multiply(several, two, i, v);
                    for (; i < now; ++i) multiply(one, two, i, v);
                }
                for (size_t i = 0; v < count && i < now; ++i) multiply(one, one, i, v);
            }
            for (size_t v = 0; v < count; ++v) {
                float* to = out + (first + v) * out_stride + r;
                for (size_t i = 0; i < now; ++i) to[i] = fold(sums + (i * most + v) * float_lanes);
            }
        }
    }
}

/// Vectors of another size than a multiple of the lanes are copied, with zeros up to one.
inline void float_matmul(const uint8_t* w, Float type, const float* x, float* out, size_t out_stride, size_t rows,
                         size_t cols, size_t n) {
    const size_t stride = (cols + float_lanes - 1) / float_lanes * float_lanes;
    Buffer padded(stride == cols ? 0 : n * stride * sizeof(float));
    const float* vectors = x;
    if (stride != cols) {
        float* copies = reinterpret_cast<float*>(padded.data());
        for (size_t v = 0; v < n; ++v) std::memcpy(copies + v * stride, x + v * cols, cols * sizeof(float));
        vectors = copies;
    }
    with_float(type, [=](auto t) {
        if (n == 1) multiply_vector<decltype(t), 4>(w, vectors, out, rows, cols);
        else multiply_vectors<decltype(t)>(w, vectors, stride, out, out_stride, rows, cols, n);
    });
}

}  // namespace bitconv::BITCONV_ISA
