// I2_S, the layout of bitnet.cpp's published files, and the order that its arm64 builds from November 2025 on read.
#pragma once
#include "codes.hpp"

namespace bitconv::BITCONV_ISA {

struct I2S {
    static constexpr const char* name = "i2_s";
    using Codes = TwoBit;
    static constexpr Geometry geometry{128, 32, 0, Scale::none};
    static constexpr size_t codes_at = 0;
    static constexpr Run runs[] = {{32, 96, -32, 1}};  // the high bits come first
};

struct I2SArm64 {
    static constexpr const char* name = "i2_s_arm64";
    using Codes = TwoBit;
    static constexpr Geometry geometry{64, 16, 0, Scale::none};
    static constexpr size_t codes_at = 0;
    static constexpr Run runs[] = {{16, 48, -16, 1}};
};

}  // namespace bitconv::BITCONV_ISA
