// TQ1_0 of llama.cpp. Like its quantizer, writes d = 0 in a block of zeros.
#pragma once
#include "codes.hpp"

namespace bitconv::BITCONV_ISA {

struct TQ1_0 {
    static constexpr const char* name = "tq1_0";
    using Codes = Base3;
    static constexpr Geometry geometry{256, 54, 0, Scale::block};
    static constexpr size_t codes_at = 0;
    static constexpr Run runs[] = {{32, 0, 32, 1}, {16, 160, 16, 1}, {4, 240, 4, 1, 0, 3}};
};

}  // namespace bitconv::BITCONV_ISA
