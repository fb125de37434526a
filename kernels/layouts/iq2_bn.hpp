// IQ2_BN of ik_llama.cpp: a float32 scale, then the codes of the row.
#pragma once
#include "codes.hpp"

namespace bitconv::BITCONV_ISA {

struct IQ2BN {
    static constexpr const char* name = "iq2_bn";
    using Codes = TwoBit;
    static constexpr Geometry geometry{64, 16, 4, Scale::row};
    static constexpr size_t codes_at = 0;
    static constexpr Run runs[] = {{16, 0, 16, 1}};
};

}  // namespace bitconv::BITCONV_ISA
