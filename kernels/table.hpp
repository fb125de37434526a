// The table of one instruction set. A file in isa/ defines BITCONV_ISA, and BITCONV_SIMD with the headers of its
// vectors if it has any, and includes this. All code below lives in the namespace BITCONV_ISA, so that the linker
// cannot mix what was compiled for different instruction sets.
#include "float_matmul.hpp"
#include "layouts/i2_s.hpp"
#include "layouts/i2_s_row4.hpp"
#include "layouts/iq1_bn.hpp"
#include "layouts/iq2_bn.hpp"
#include "layouts/q2_0.hpp"
#include "layouts/rows.hpp"
#include "layouts/tl1.hpp"
#include "layouts/tl2.hpp"
#include "layouts/tq1_0.hpp"
#include "layouts/tq2_0.hpp"
#include "matmul.hpp"
#ifdef BITCONV_SIMD
#include "layouts/dot.hpp"
#include "layouts/lookup.hpp"
#else
#include "layouts/unpacked.hpp"
#endif

namespace bitconv::BITCONV_ISA {

template <class L>
constexpr RowLayout row_layout(const char* name) {
#ifdef BITCONV_SIMD
    return {name, L::geometry, 1, pack<L>, unpack<L>, dot_matmul<L>};
#else
    return {name, L::geometry, 1, pack<L>, unpack<L>, unpacked_matmul<L>};
#endif
}

extern const Kernels table;
const Kernels table = {
    BITCONV_ISA_NAME,
    abs_sum,
    ternarize,
    ternary_scales,
    unpack_hf,
    convert_floats,
    dequantize,
    matmul,
    float_matmul,
    {
        row_layout<I2S>("i2_s"),
        {"i2_s_arm64", I2SArm64::geometry, 1, nullptr, unpack<I2SArm64>, nullptr},
        {"i2_s_row4", {4, 1, 0, Scale::none}, 4, nullptr, i2_s_row4_unpack, nullptr},
        row_layout<TQ1_0>("tq1_0"),
        row_layout<TQ2_0>("tq2_0"),
        row_layout<Q2_0>("q2_0"),
        row_layout<IQ2BN>("iq2_bn"),
        row_layout<IQ1BN>("iq1_bn"),
    },
    {tl1_pack, tl1_unpack, tl1_matmul},
    {tl2_pack, tl2_unpack, tl2_matmul},
};

}  // namespace bitconv::BITCONV_ISA
