// Q2_0 of llama.cpp. Like its quantizer, writes d = 0 in a block of zeros.
#pragma once
#include "codes.hpp"

namespace bitconv::BITCONV_ISA {

struct Q2_0 {
    static constexpr const char* name = "q2_0";
    using Codes = TwoBit;
    static constexpr Geometry geometry{64, 18, 0, Scale::block};
    static constexpr size_t codes_at = 2;
    static constexpr Run runs[] = {{16, 0, 1, 4}};
};

}  // namespace bitconv::BITCONV_ISA
