// Products of packed rows with int8 activations, for every layout that describes itself as codes.hpp says.
//
// One routine serves them all, since the layouts differ only in which column each code stands for: the
// activations are put in the order of the codes once, and then digit p of `width` code bytes meets `width`
// consecutive activations. Codes are trits plus one, so the sum of x comes off at the end.
//
// The instruction set gives `Dot`: vectors of `width` bytes, the digits of code bytes, and sums of products in
// two stages, Partial (which overflows after chunks_per_partial chunks of `width` code bytes) and Sum (int32).
#pragma once
#include "codes.hpp"

namespace bitconv::BITCONV_ISA {

/// How the code bytes of a row fall into vectors.
template <class L>
struct Chunks {
    static constexpr size_t code_bytes() {
        size_t bytes = 0;
        for (const Run& run : L::runs) bytes += static_cast<size_t>(run.bytes);
        return bytes;
    }
    static constexpr Geometry g = L::geometry;
    static constexpr size_t width = Dot::width;
    static constexpr size_t digits = L::Codes::digits;

    // Where scales part the code bytes, each block is padded to a power of two; otherwise the row is one run.
    static constexpr bool dense = g.block_bytes == code_bytes();
    static constexpr size_t padded_block = dense ? code_bytes() : code_bytes() > 16 ? 64 : 16;
    static constexpr size_t step = dense || padded_block < width ? width : padded_block;  // padded bytes in a step
    static constexpr size_t per_step = step / width;                                      // chunks in a step
    static constexpr size_t advance = dense ? width : step / padded_block * g.block_bytes;
    static constexpr size_t reach = L::codes_at + (dense || padded_block >= width
        ? step : (width / padded_block - 1) * g.block_bytes + padded_block);  // bytes read in a step
    static constexpr size_t steps_per_partial = Dot::chunks_per_partial / per_step;
    static constexpr size_t activations = per_step * digits * width;  // a step's activations

    static constexpr size_t steps(size_t cols) { return (cols / g.block * padded_block + step - 1) / step; }

    static Dot::Bytes load(const uint8_t* codes, size_t chunk) {
        if constexpr (dense || padded_block >= width) {
            return Dot::load(codes + chunk * width);
        } else {
            return Dot::template load_pieces<g.block_bytes>(codes);
        }
    }

    /// Puts x [N, cols] in the order of the codes: [steps][N][per_step][digits][width]. Unused places stay as
    /// they are, zero.
    template <size_t N>
    static void order(const int8_t* __restrict x, size_t cols, int8_t* __restrict ordered) {
        for (size_t v = 0; v < N; ++v) {
            for (size_t b = 0; b < cols / g.block; ++b) {
                each_run<L>([=](auto index, auto start) {
                    constexpr Run run = L::runs[index];
                    for (int j = 0; j < run.bytes; ++j) {
                        const size_t byte = b * padded_block + static_cast<size_t>(start + j);
                        const size_t chunk = byte / step * N * per_step + v * per_step + byte % step / width;
                        int8_t* to = ordered + chunk * digits * width + byte % width;
                        for (int p = 0; p < L::Codes::digits; ++p) {
                            if (run.uses(p)) to[static_cast<size_t>(p) * width] = x[b * g.block + run.column(j, p)];
                        }
                    }
                });
            }
            x += cols;
        }
    }
};

template <class Codes, class Visit, int Digit = 0>
inline void each_digit(Dot::Bytes b, Visit visit) {
    if constexpr (Digit < Codes::digits) {
        if constexpr (Codes::digits == 4) {
            visit(Dot::template two_bit<Digit>(b), Digit);
            each_digit<Codes, Visit, Digit + 1>(b, visit);
        } else {
            visit(Dot::first_base3_digit(b), Digit);
            each_digit<Codes, Visit, Digit + 1>(Dot::times_3(b), visit);
        }
    }
}

/// Adds to sums[0], sums[stride], ... the products of `steps` steps of a row with N ordered vectors.
template <class L, size_t N>
void dot(const uint8_t* codes, size_t steps, const int8_t* x, int32_t* sums, size_t stride) {
    using C = Chunks<L>;
    Dot::Sum totals[N];
    for (auto& total : totals) total = Dot::sum_zero();
    while (steps > 0) {
        const size_t now = steps < C::steps_per_partial ? steps : C::steps_per_partial;
        Dot::Partial partials[N];
        for (auto& partial : partials) partial = Dot::zero();
        for (size_t s = 0; s < now; ++s) {
            for (size_t chunk = 0; chunk < C::per_step; ++chunk) {
                Dot::Bytes digits[C::digits];
                each_digit<typename L::Codes>(C::load(codes, chunk), [&](Dot::Bytes d, int p) { digits[p] = d; });
                for (size_t v = 0; v < N; ++v) {
                    const int8_t* xv = x + (v * C::per_step + chunk) * C::digits * C::width;
                    Dot::Partial product = Dot::zero();
                    for (size_t p = 0; p < C::digits; ++p) {
                        product = Dot::multiply_add(product, digits[p], xv + p * C::width);
                    }
                    partials[v] = Dot::add(partials[v], product);
                }
            }
            x += N * C::activations;
            codes += C::advance;
        }
        for (size_t v = 0; v < N; ++v) totals[v] = Dot::widen(totals[v], partials[v]);
        steps -= now;
    }
    for (size_t v = 0; v < N; ++v) sums[v * stride] += Dot::total(totals[v]);
}

/// Packed rows, and the room to read the last of them without reading past the end.
template <class L>
struct PackedRows {
    using C = Chunks<L>;
    const uint8_t* packed;
    size_t rows, cols;
    size_t row_bytes = L::geometry.row_header + cols / L::geometry.block * L::geometry.block_bytes;
    size_t row_reach = L::geometry.row_header + (C::steps(cols) - 1) * C::advance + C::reach;
    Buffer copy{row_reach};

    /// The blocks of row r, readable for all its steps.
    const uint8_t* row(size_t r) {
        const uint8_t* row = packed + r * row_bytes;
        if (r * row_bytes + row_reach > rows * row_bytes) {
            std::memcpy(copy.data(), row, row_bytes);
            row = copy.data();
        }
        return row + L::geometry.row_header + L::codes_at;
    }
};

/// Products with vectors x [n, cols], N at a time, then the rest with smaller N. `ordered` has room for N vectors.
template <class L, size_t N>
void dot_tiles(PackedRows<L>& w, const int8_t* x, int32_t* out, size_t n, int8_t* ordered) {
    using C = Chunks<L>;
    constexpr size_t cache = 16384;  // bytes of activations that stay close while the rows pass
    constexpr size_t steps_at_once = cache / (N * C::activations) + 1;
    const size_t steps = C::steps(w.cols);
    if (n >= N) std::memset(ordered, 0, steps * N * C::activations);
    for (; n >= N; n -= N, x += N * w.cols, out += N * w.rows) {
        C::template order<N>(x, w.cols, ordered);
        for (size_t s = 0; s < steps; s += steps_at_once) {
            const size_t now = steps - s < steps_at_once ? steps - s : steps_at_once;
            for (size_t r = 0; r < w.rows; ++r) {
                dot<L, N>(w.row(r) + s * C::advance, now, ordered + s * N * C::activations, out + r, w.rows);
            }
        }
    }
    if constexpr (N > 1) dot_tiles<L, N / 2>(w, x, out, n, ordered);
}

template <class L>
void dot_matmul(const uint8_t* packed, const int8_t* x, int32_t* out, size_t rows, size_t cols, size_t n) {
    constexpr size_t tile = 4;
    for (size_t v = 0; v < n; ++v) {
        int32_t sum = 0;
        for (size_t k = 0; k < cols; ++k) sum += x[v * cols + k];
        for (size_t r = 0; r < rows; ++r) out[v * rows + r] = -sum;
    }
    if (rows == 0 || cols == 0) return;
    Buffer ordered(tile * Chunks<L>::steps(cols) * Chunks<L>::activations);
    PackedRows<L> w{packed, rows, cols};
    dot_tiles<L, tile>(w, x, out, n, reinterpret_cast<int8_t*>(ordered.data()));
}

}  // namespace bitconv::BITCONV_ISA
