// Products of packed rows with int8 activations, for every layout that describes itself as codes.hpp says.
//
// One routine serves them all, since the layouts differ only in which column each code stands for: the
// activations are put in the order of the codes once, and then digit p of `width` code bytes meets `width`
// consecutive activations, for any number of rows. Codes are trits plus one, so the sum of x comes off at the end.
//
// The instruction set gives `Dot`: vectors of `width` bytes, the digits of code bytes, and sums of products in
// two stages, Partial (which overflows after chunks_per_partial chunks of `width` code bytes) and Sum (int32), of which
// sums_at_once stay in registers.
#pragma once
#include "codes.hpp"
#include "../unrolled.hpp"

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

    // A row is computed in steps of whole vectors and whole padded blocks.
    static constexpr size_t padded_per_step = dense || padded_block < width ? width : padded_block;
    static constexpr size_t chunks_per_step = padded_per_step / width;
    static constexpr size_t activations_per_step = chunks_per_step * digits * width;
    static constexpr size_t steps_per_partial = Dot::chunks_per_partial / chunks_per_step;
    // Packed bytes from where a step starts to where the next does, and those that it reads, which may be more.
    static constexpr size_t bytes_per_step = dense ? width : padded_per_step / padded_block * g.block_bytes;
    static constexpr size_t bytes_read = L::codes_at + (dense || padded_block >= width
        ? padded_per_step : (width / padded_block - 1) * g.block_bytes + padded_block);

    static constexpr size_t steps(size_t cols) {
        return (cols / g.block * padded_block + padded_per_step - 1) / padded_per_step;
    }

    static Dot::Bytes load(const uint8_t* codes, size_t chunk) {
        if constexpr (dense || padded_block >= width) {
            return Dot::load(codes + chunk * width);
        } else {
            return Dot::template load_pieces<g.block_bytes>(codes);
        }
    }

    /// How many bytes of a run have their activations side by side in each digit, in x as in the order of the codes.
    static constexpr int bytes_together(const Run& run, int start) {
        constexpr int room = static_cast<int>(padded_block < width ? padded_block : width);
        if (run.byte_step != 1) return 1;
        if (start % room + run.bytes <= room) return run.bytes;
        return start % room == 0 && run.bytes % room == 0 ? room : 1;
    }

    /// Of a vector in the order of the codes, its negated sum before it.
    static size_t ordered_bytes(size_t cols) { return sums_bytes + (steps(cols) * activations_per_step + 63) / 64 * 64; }
    static constexpr size_t sums_bytes = 64;

    /// Puts x [N, cols] in the order of the codes: [steps][N][chunks_per_step][digits][width], with zeros in the places
    /// that no column has.
    template <size_t N>
    static void order(const int8_t* __restrict x, size_t cols, int8_t* __restrict ordered) {
        std::memset(ordered, 0, steps(cols) * N * activations_per_step);
        for (size_t v = 0; v < N; ++v) {
            for (size_t b = 0; b < cols / g.block; ++b) {
                each_run<L>([=](auto index, auto start) {
                    constexpr Run run = L::runs[index];
                    constexpr int piece = bytes_together(run, start);
                    for (int j = 0; j < run.bytes; j += piece) {
                        const size_t byte = b * padded_block + static_cast<size_t>(start + j);
                        const size_t step = byte / padded_per_step, rest = byte % padded_per_step;
                        const size_t chunk = (step * N + v) * chunks_per_step + rest / width;
                        int8_t* to = ordered + chunk * digits * width + byte % width;
                        for (int p = 0; p < L::Codes::digits; ++p) {
                            if (run.uses(p)) {
                                const int8_t* from = x + b * g.block + run.column(j, p);
                                std::memcpy(to + static_cast<size_t>(p) * width, from, piece);
                            }
                        }
                    }
                });
            }
            x += cols;
        }
    }
};

/// The digits of code bytes, first to last.
template <class Codes>
inline void split(Dot::Bytes b, Dot::Bytes (&digits)[Codes::digits]) {
    unrolled<Codes::digits>([&](auto p) {
        if constexpr (Codes::digits == 4) {
            digits[p] = Dot::template two_bit<p>(b);
        } else {
            digits[p] = Dot::first_base3_digit(b);
            b = Dot::times_3(b);
        }
    });
}

/// Adds to sums[v * stride + r] the products of `steps` steps of row r with ordered vector v. `row_bytes` apart, the
/// rows are read side by side, which no processor foresees: those after them are prefetched.
template <class L, size_t R, size_t N>
void dot(const uint8_t* const (&rows)[R], size_t row_bytes, size_t steps, const int8_t* x, int32_t* sums,
         size_t stride) {
    using C = Chunks<L>;
    constexpr size_t line = 64;
    // With registers for many sums, the digits of all rows meet activations that are loaded once. With few, a row's do,
    // and what a chunk adds is a sum of its own, which need not wait for the chunk before.
    constexpr bool many = R * N > 4;
    constexpr size_t together = many ? R : 1;
    const uint8_t* next = rows[R - 1] + row_bytes;
    size_t at = 0;
    Dot::Sum totals[R * N];
    unrolled<R * N>([&](auto i) { totals[i] = Dot::sum_zero(); });
    while (steps > 0) {
        const size_t now = steps < C::steps_per_partial ? steps : C::steps_per_partial;
        Dot::Partial partials[R * N];
        unrolled<R * N>([&](auto i) { partials[i] = Dot::zero(); });
        for (size_t s = 0; s < now; ++s) {
            unrolled<(R * C::bytes_per_step + line - 1) / line>([&](auto i) { Dot::prefetch(next + i * line); });
            unrolled<C::chunks_per_step * R / together>([&](auto i) {
                constexpr size_t chunk = i * together / R, first = i * together % R;
                Dot::Bytes digits[together][C::digits];
                unrolled<together>([&](auto r) {
                    split<typename L::Codes>(C::load(rows[first + r] + at, chunk), digits[r]);
                });
                unrolled<N>([&](auto v) {
                    const int8_t* xv = x + (v * C::chunks_per_step + chunk) * C::digits * C::width;
                    Dot::Partial products[together];
                    unrolled<together>([&](auto r) { products[r] = many ? partials[r * N + v] : Dot::zero(); });
                    unrolled<C::digits>([&](auto p) {
                        const Dot::Bytes columns = Dot::load(reinterpret_cast<const uint8_t*>(xv + p * C::width));
                        unrolled<together>([&](auto r) {
                            products[r] = Dot::multiply_add(products[r], digits[r][p], columns);
                        });
                    });
                    unrolled<together>([&](auto r) {
                        Dot::Partial& sum = partials[(first + r) * N + v];
                        sum = many ? products[r] : Dot::add(sum, products[r]);
                    });
                });
            });
            x += N * C::activations_per_step;
            at += C::bytes_per_step;
            next += R * C::bytes_per_step;
        }
        unrolled<R * N>([&](auto i) { totals[i] = Dot::widen(totals[i], partials[i]); });
        steps -= now;
    }
    unrolled<R * N>([&](auto i) { sums[i % N * stride + i / N] += Dot::total(totals[i]); });
}

/// Packed rows, and the room to read the last of them without reading past the end.
template <class L>
struct PackedRows {
    using C = Chunks<L>;
    static constexpr size_t at_once = 16;  // rows that may be in use
    const uint8_t* packed;
    size_t rows, cols;
    size_t row_bytes = L::geometry.row_header + cols / L::geometry.block * L::geometry.block_bytes;
    size_t row_bytes_read = L::geometry.row_header + (C::steps(cols) - 1) * C::bytes_per_step + C::bytes_read;
    Buffer copies{row_bytes_read > row_bytes ? at_once * row_bytes_read : 0};

    /// The blocks of row r, readable for all its steps.
    const uint8_t* row(size_t r) {
        const uint8_t* row = packed + r * row_bytes;
        if (r * row_bytes + row_bytes_read > rows * row_bytes) {
            uint8_t* copy = copies.data() + r % at_once * row_bytes_read;
            std::memcpy(copy, row, row_bytes);
            row = copy;
        }
        return row + L::geometry.row_header + L::codes_at;
    }
};

}  // namespace bitconv::BITCONV_ISA

#ifdef BITCONV_I8MM
#include "dot_i8mm.hpp"
#endif
#ifdef BITCONV_AMX
#include "dot_amx.hpp"
#endif

namespace bitconv::BITCONV_ISA {

/// Rows for which the sums with so many vectors fit the registers.
constexpr size_t rows_with(size_t vectors) {
    const size_t fit = Dot::sums_at_once / vectors;
    return fit < 1 ? 1 : fit < 4 ? fit : 4;
}

/// Products of the rows from `first` on, R at a time, then the rest with smaller R, over `steps` steps from `start` on.
template <class L, size_t R, size_t N>
void dot_rows(PackedRows<L>& w, size_t first, size_t start, size_t steps, const int8_t* x, int32_t* out,
              size_t stride) {
    for (; first + R <= w.rows; first += R) {
        const uint8_t* rows[R];
        for (size_t r = 0; r < R; ++r) rows[r] = w.row(first + r) + start * Chunks<L>::bytes_per_step;
#ifdef BITCONV_I8MM
        if constexpr (R % 2 == 0 && N % 2 == 0) {
            dot_pairs<L, R, N>(rows, steps, x, out + first, stride);
            continue;
        }
#endif
        dot<L, R, N>(rows, w.row_bytes, steps, x, out + first, stride);
    }
    if constexpr (R > 1) dot_rows<L, R / 2, N>(w, first, start, steps, x, out, stride);
}

/// How many of n vectors are in tiles of AMX.
constexpr size_t in_tiles([[maybe_unused]] size_t n) {
#ifdef BITCONV_AMX
    return n / tile_rows * tile_rows;
#else
    return 0;
#endif
}

template <class L>
size_t dot_ordered_bytes(size_t cols) {
    return Chunks<L>::ordered_bytes(cols);
}

template <class L>
void dot_order(const int8_t* x, size_t cols, size_t n, uint8_t* ordered) {
    using C = Chunks<L>;
    if (cols == 0) return;
    const auto order = [=](auto count, size_t v) {
        uint8_t* to = ordered + v * C::ordered_bytes(cols);
        for (size_t i = 0; i < count; ++i) {
            int32_t sum = 0;
            for (size_t k = 0; k < cols; ++k) sum -= x[(v + i) * cols + k];
            std::memcpy(to + i * C::sums_bytes, &sum, sizeof sum);
        }
        C::template order<count>(x + v * cols, cols, reinterpret_cast<int8_t*>(to + count * C::sums_bytes));
    };
#ifdef BITCONV_AMX
    for (size_t v = 0; v < in_tiles(n); v += tile_rows) order(std::integral_constant<size_t, tile_rows>{}, v);
#endif
    each_tile(n, order, in_tiles(n));
}

template <class L>
void dot_multiply(const uint8_t* packed, size_t rows, size_t cols, const uint8_t* ordered, size_t n, int32_t* out,
                  size_t stride) {
    using C = Chunks<L>;
    if (rows == 0) return;
    if (cols == 0) {
        for (size_t v = 0; v < n; ++v) std::memset(out + v * stride, 0, rows * sizeof *out);
        return;
    }
    PackedRows<L> w{packed, rows, cols};
    const size_t steps = C::steps(cols);
#ifdef BITCONV_AMX
    if (in_tiles(n) > 0) multiply_tiles(w, ordered, in_tiles(n) / tile_rows, out, stride);
#endif
    each_tile(n, [&](auto count, size_t v) {
        constexpr size_t cache = 16384;  // bytes of activations that stay close while the rows pass
        constexpr size_t steps_at_once = cache / (count * C::activations_per_step) + 1;
        const uint8_t* tile = ordered + v * C::ordered_bytes(cols);
        for (size_t i = 0; i < count; ++i) {
            int32_t sum;
            std::memcpy(&sum, tile + i * C::sums_bytes, sizeof sum);
            for (size_t r = 0; r < rows; ++r) out[(v + i) * stride + r] = sum;
        }
        const int8_t* x = reinterpret_cast<const int8_t*>(tile + count * C::sums_bytes);
        for (size_t s = 0; s < steps; s += steps_at_once) {
            const size_t now = steps - s < steps_at_once ? steps - s : steps_at_once;
            dot_rows<L, rows_with(count), count>(w, 0, s, now, x + s * count * C::activations_per_step,
                                                 out + v * stride, stride);
        }
    }, in_tiles(n));
}

}  // namespace bitconv::BITCONV_ISA
