// What the layouts of 2-bit and of base-3 codes have in common: pack and unpack, driven by a description.
//
// A description is a struct with
//   name      as in the registry of bitconv.layouts
//   Codes     TwoBit or Base3: how a byte holds the codes (code = trit + 1) of several columns
//   geometry  see kernels.hpp
//   codes_at  where in a block the code bytes begin, after or before its scale
//   runs      which column each code of a block stands for
#pragma once
#include "../sources.hpp"

#include <utility>

namespace bitconv::BITCONV_ISA {

/// `bytes` code bytes in a row: digit p of byte j is column  first + p * digit_step + j * byte_step.
/// Digits outside first_digit to last_digit are not in use and zero.
struct Run {
    int bytes, first, digit_step, byte_step;
    int first_digit = 0, last_digit = 4;

    constexpr int column(int byte, int digit) const { return first + digit * digit_step + byte * byte_step; }
    constexpr bool uses(int digit) const { return first_digit <= digit && digit <= last_digit; }
};

/// Four codes a byte, digit p at bits 2p+1:2p. Code 3 is invalid.
struct TwoBit {
    static constexpr int digits = 4;
    /// The value of the codes up to `digit`, from that of the codes before; encode makes a byte of the last.
    static constexpr uint8_t append(uint8_t value, int digit, uint8_t code) {
        return static_cast<uint8_t>(value | code << 2 * digit);
    }
    static constexpr uint8_t encode(uint8_t value) { return value; }
    static constexpr uint8_t digit(uint8_t byte, int digit) { return byte >> 2 * digit & 3; }
    static constexpr bool valid(uint8_t byte, const Run&) { return (byte & byte >> 1 & 0x55) == 0; }
};

/// Five codes a byte: v = 81 * digit 0 + 27 * digit 1 + 9 * digit 2 + 3 * digit 3 + digit 4, stored as
/// 256 v / 243 rounded up. Only 243 of the 256 bytes are valid.
struct Base3 {
    static constexpr int digits = 5;
    static constexpr uint8_t append(uint8_t value, int, uint8_t code) {
        return static_cast<uint8_t>(3 * value + code);
    }
    static constexpr uint8_t encode(uint8_t value) { return static_cast<uint8_t>((256 * value + 242) / 243); }
    static constexpr uint8_t digit(uint8_t byte, int digit) {
        constexpr uint8_t powers[] = {1, 3, 9, 27, 81};
        const uint8_t rest = static_cast<uint8_t>(byte * powers[digit]);  // byte / 256 as a fraction in base 3
        return static_cast<uint8_t>((rest >= 86) + (rest >= 171));
    }
    /// Packing rounds 256 v / 243 up by less than one, so 243 times the byte exceeds 256 v by less than 243.
    static constexpr bool valid(uint8_t byte, const Run& run) {
        bool unused_zero = true;
        for (int p = 0; p < digits; ++p) unused_zero &= run.uses(p) || digit(byte, p) == 0;
        return static_cast<uint8_t>(byte * 243) < 243 && unused_zero;
    }
};

/// Calls visit(index of the run, its first byte) for every run of L, both as types, so that they stay constants.
template <class L, size_t I = 0, int Byte = 0, class Visit>
inline void each_run(Visit visit) {
    if constexpr (I < sizeof L::runs / sizeof L::runs[0]) {
        visit(std::integral_constant<size_t, I>{}, std::integral_constant<int, Byte>{});
        each_run<L, I + 1, Byte + L::runs[I].bytes>(visit);
    }
}

template <class L>
void pack_block(const int8_t* __restrict trits, uint8_t* __restrict codes) {
    each_run<L>([=](auto index, auto start) {
        constexpr Run run = L::runs[index];
        for (int j = 0; j < run.bytes; ++j) {
            uint8_t value = 0;
            for (int p = 0; p < L::Codes::digits; ++p) {
                const uint8_t code = run.uses(p) ? static_cast<uint8_t>(trits[run.column(j, p)] + 1) : uint8_t{0};
                value = L::Codes::append(value, p, code);
            }
            codes[start + j] = L::Codes::encode(value);
        }
    });
}

/// The trits that each byte holds, in the order of their columns where `Reversed` says that digits run backwards.
template <class Codes, bool Reversed>
struct ByteTrits {
    int8_t trits[256][Codes::digits] = {};
    constexpr ByteTrits() {
        for (int byte = 0; byte < 256; ++byte) {
            for (int p = 0; p < Codes::digits; ++p) {
                const int column = Reversed ? Codes::digits - 1 - p : p;
                trits[byte][column] = static_cast<int8_t>(Codes::digit(static_cast<uint8_t>(byte), p) - 1);
            }
        }
    }
};

/// Returns whether all codes are valid.
template <class L>
bool unpack_block(const uint8_t* __restrict codes, int8_t* __restrict trits) {
    using Codes = typename L::Codes;
    bool valid = true;
    each_run<L>([=, &valid](auto index, auto start) {
        constexpr Run run = L::runs[index];
        uint8_t invalid = 0;
        for (int j = 0; j < run.bytes; ++j) {
            const uint8_t byte = codes[start + j];
            if constexpr (run.digit_step == 1 || run.digit_step == -1) {  // a byte's columns are neighbours
                static constexpr ByteTrits<Codes, run.digit_step == -1> table;
                constexpr int first_digit = run.digit_step == 1 ? 0 : Codes::digits - 1;
                std::memcpy(trits + run.column(j, first_digit), table.trits[byte], Codes::digits);
            } else {
                for (int p = 0; p < Codes::digits; ++p) {
                    if (run.uses(p)) trits[run.column(j, p)] = static_cast<int8_t>(Codes::digit(byte, p) - 1);
                }
            }
            invalid |= !Codes::valid(byte, run);
        }
        valid &= !invalid;
    });
    return valid;
}

}  // namespace bitconv::BITCONV_ISA
