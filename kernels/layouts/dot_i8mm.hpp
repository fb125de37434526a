// Products of pairs of packed rows with pairs of vectors, by the instructions of i8mm. See dot.hpp.
#pragma once

namespace bitconv::BITCONV_ISA {

/// As dot does it. The halves of two rows, or of two vectors, side by side are a matrix of two rows.
template <class L, size_t R, size_t N>
void dot_pairs(const uint8_t* const (&rows)[R], size_t steps, const int8_t* x, int32_t* sums, size_t stride) {
    using C = Chunks<L>;
    constexpr size_t row_pairs = R / 2, pairs = N / 2;
    Dot::Sum totals[row_pairs * pairs];
    unrolled<row_pairs * pairs>([&](auto i) { totals[i] = Dot::sum_zero(); });
    for (size_t s = 0; s < steps; ++s) {
        unrolled<C::chunks_per_step>([&](auto chunk) {
            Dot::Bytes first[row_pairs][C::digits], second[row_pairs][C::digits];
            unrolled<row_pairs>([&](auto i) {
                const size_t at = s * C::bytes_per_step;
                const Dot::Bytes a = C::load(rows[2 * i] + at, chunk), b = C::load(rows[2 * i + 1] + at, chunk);
                split<typename L::Codes>(Dot::first_halves(a, b), first[i]);
                split<typename L::Codes>(Dot::second_halves(a, b), second[i]);
            });
            unrolled<pairs * C::digits>([&](auto k) {
                constexpr size_t j = k / C::digits, p = k % C::digits;
                constexpr size_t vector = C::chunks_per_step * C::digits * C::width;
                const int8_t* at = x + 2 * j * vector + (chunk * C::digits + p) * C::width;
                const Dot::Bytes a = Dot::load(reinterpret_cast<const uint8_t*>(at));
                const Dot::Bytes b = Dot::load(reinterpret_cast<const uint8_t*>(at + vector));
                const Dot::Bytes low = Dot::first_halves(a, b), high = Dot::second_halves(a, b);
                unrolled<row_pairs>([&](auto i) {
                    Dot::Sum& total = totals[i * pairs + j];
                    total = Dot::multiply_matrices(total, first[i][p], low);
                    total = Dot::multiply_matrices(total, second[i][p], high);
                });
            });
        });
        x += N * C::activations_per_step;
    }
    unrolled<row_pairs * pairs>([&](auto i) {
        constexpr size_t r = i / pairs * 2, v = i % pairs * 2;
        int32_t products[4];
        Dot::store(products, totals[i]);
        for (size_t k = 0; k < 4; ++k) sums[(v + k % 2) * stride + r + k / 2] += products[k];
    });
}

}  // namespace bitconv::BITCONV_ISA
