// IQ1_BN of ik_llama.cpp: a float16 scale, then the codes of the row. Three bytes hold 15 of 16 columns, the
// first column in the last digit; byte 12 holds the sixteenth columns.
#pragma once
#include "codes.hpp"

namespace bitconv::BITCONV_ISA {

struct IQ1BN {
    static constexpr const char* name = "iq1_bn";
    using Codes = Base3;
    static constexpr Geometry geometry{64, 13, 2, Scale::row};
    static constexpr size_t codes_at = 0;
    static constexpr Run runs[] = {
        {3, 4, -1, 5}, {3, 20, -1, 5}, {3, 36, -1, 5}, {3, 52, -1, 5}, {1, 79, -16, 0, 1, 4}};
};

}  // namespace bitconv::BITCONV_ISA
