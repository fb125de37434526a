// The plain product of an unpacked matrix, with which the products of the packed layouts are compared.
#pragma once
#include "kernels.hpp"

namespace bitconv::BITCONV_ISA {

inline void to_int16(const int8_t* __restrict from, size_t n, int16_t* __restrict to) {
    for (size_t i = 0; i < n; ++i) to[i] = from[i];
}

inline int32_t product(const int16_t* a, const int16_t* b, size_t n) {
    int32_t sum = 0;
    for (size_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

inline void matmul(const int8_t* trits, const int8_t* x, int32_t* out, size_t rows, size_t cols, size_t n) {
    Buffer wide_x(n * cols * sizeof(int16_t)), wide_row(cols * sizeof(int16_t));
    int16_t* vectors = reinterpret_cast<int16_t*>(wide_x.data());
    int16_t* row = reinterpret_cast<int16_t*>(wide_row.data());
    to_int16(x, n * cols, vectors);
    for (size_t r = 0; r < rows; ++r) {
        to_int16(trits + r * cols, cols, row);
        for (size_t v = 0; v < n; ++v) out[v * rows + r] = product(row, vectors + v * cols, cols);
    }
}

}  // namespace bitconv::BITCONV_ISA
