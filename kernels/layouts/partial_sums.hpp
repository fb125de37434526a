// The partial sums that the nibbles of TL1 and TL2 stand for.
#pragma once
#include <cstdint>

namespace bitconv::BITCONV_ISA {

/// The trits of each column of a pair, by the nibble: nine of 16.
constexpr int16_t pair_trits[2][16] = {{-1, -1, -1, 0, 0, 0, 1, 1, 1}, {-1, 0, 1, -1, 0, 1, -1, 0, 1}};

/// The trits of each column of a triple, by the nibble: 14 of 16.
constexpr int16_t triple_trits[3][16] = {{0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                         {0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1},
                                         {0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1}};

}  // namespace bitconv::BITCONV_ISA
