// Vectors of float32 on AVX2. See float_matmul.hpp.
#pragma once
#include <cstddef>
#include <immintrin.h>

namespace bitconv::BITCONV_ISA {

struct Floats {
    static constexpr size_t width = 8;
    using Vector = __m256;

    static Vector load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
    static Vector multiply_add(Vector sum, Vector a, Vector b) { return _mm256_add_ps(sum, _mm256_mul_ps(a, b)); }
};

}  // namespace bitconv::BITCONV_ISA
