// TQ2_0 of llama.cpp. Like its quantizer, writes d = 0 in a block of zeros.
#pragma once
#include "codes.hpp"

namespace bitconv::BITCONV_ISA {

struct TQ2_0 {
    static constexpr const char* name = "tq2_0";
    using Codes = TwoBit;
    static constexpr Geometry geometry{256, 66, 0, Scale::block};
    static constexpr size_t codes_at = 0;
    static constexpr Run runs[] = {{32, 0, 32, 1}, {32, 128, 32, 1}};
};

}  // namespace bitconv::BITCONV_ISA
