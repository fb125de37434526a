// Lookups by shuffles of bytes: of the low and of the high bytes of the sums.
//
// The instruction set gives `Lookup`: vectors of `lanes` lanes of 16 bytes. A lane of 16 nibbles becomes two lanes
// of 8 int16, for its first 8 rows and its last 8.
#pragma once
#include "partial_sums.hpp"
#include <cstddef>
#include <cstdint>

namespace bitconv::BITCONV_ISA {

constexpr size_t lookup_lanes = Lookup::lanes;

/// The low and the high bytes of 16 partial sums.
struct SumTable {
    uint8_t low[16], high[16];

    void set_pair(const int8_t* x) {
        for (int i = 0; i < 16; ++i) set(i, pair_trits[0][i] * x[0] + pair_trits[1][i] * x[1]);
    }
    void set_triple(const int8_t* x) {
        for (int i = 0; i < 16; ++i) {
            set(i, triple_trits[0][i] * x[0] + triple_trits[1][i] * x[1] + triple_trits[2][i] * x[2]);
        }
    }

private:
    void set(int i, int sum) {
        low[i] = static_cast<uint8_t>(sum);
        high[i] = static_cast<uint8_t>(sum >> 8);
    }
};

/// The signs of eight triples, of which each add_signed() takes two.
struct LookupSigns {
    Lookup::Words signs;

    LookupSigns(const uint8_t* p, size_t) : signs(Lookup::load_words(p)) {}
};

/// int16 sums of N vectors with the rows of a vector of nibbles.
template <size_t N>
struct LookupSums {
    Lookup::Words first[N], last[N];

    LookupSums() {
        for (size_t v = 0; v < N; ++v) first[v] = last[v] = Lookup::zero();
    }
    /// The high nibbles by tables[N], the low ones by the next N.
    void add(const SumTable* tables, const uint8_t* p, size_t lane_bytes, size_t) {
        const auto bytes = Lookup::load(p, lane_bytes);
        add_nibbles(tables, Lookup::high_nibbles(bytes));
        add_nibbles(tables + N, Lookup::low_nibbles(bytes));
    }
    void add_signed(const SumTable* tables, const uint8_t* p, size_t lane_bytes, size_t, LookupSigns& sign) {
        const auto bytes = Lookup::load(p, lane_bytes);
        add_signed_nibbles(tables, Lookup::high_nibbles(bytes), sign);
        add_signed_nibbles(tables + N, Lookup::low_nibbles(bytes), sign);
    }
    /// Adds 8 sums a lane to out[v * stride ...], those of lane l being lane_rows further on than the lane before.
    void flush(int32_t* out, size_t stride, size_t last_row, size_t lane_rows, size_t) {
        for (size_t v = 0; v < N; ++v) {
            Lookup::add_to(out + v * stride, lane_rows, first[v]);
            Lookup::add_to(out + v * stride + last_row, lane_rows, last[v]);
        }
    }

private:
    void add_nibbles(const SumTable* tables, Lookup::Bytes nibbles) {
        for (size_t v = 0; v < N; ++v) {
            const auto [a, b] = Lookup::lookup(tables[v].low, tables[v].high, nibbles);
            first[v] = Lookup::add(first[v], a);
            last[v] = Lookup::add(last[v], b);
        }
    }
    void add_signed_nibbles(const SumTable* tables, Lookup::Bytes nibbles, LookupSigns& sign) {
        const auto mask_first = Lookup::take_sign(sign.signs), mask_last = Lookup::take_sign(sign.signs);
        for (size_t v = 0; v < N; ++v) {
            const auto [a, b] = Lookup::lookup(tables[v].low, tables[v].high, nibbles);
            first[v] = Lookup::add(first[v], Lookup::negate(a, mask_first));
            last[v] = Lookup::add(last[v], Lookup::negate(b, mask_last));
        }
    }
};

}  // namespace bitconv::BITCONV_ISA
