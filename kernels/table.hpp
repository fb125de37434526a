// The table of one instruction set. A file in isa/ defines BITCONV_ISA, and BITCONV_SIMD with the headers of its
// vectors if it has any, and includes this. All code below lives in the namespace BITCONV_ISA, so that the linker
// cannot mix what was compiled for different instruction sets.
#include "float_matmul.hpp"
#include "layer.hpp"
#include "layouts/list.hpp"
#include "layouts/tl1.hpp"
#include "layouts/tl2.hpp"
#include "matmul.hpp"
#include "quantize.hpp"
#ifdef BITCONV_SIMD
#include "layouts/lookup.hpp"
#else
#include "layouts/unpacked.hpp"
#endif

namespace bitconv::BITCONV_ISA {

extern const Kernels table;
const Kernels table = {
    BITCONV_ISA_NAME,
    abs_sum,
    ternarize,
    threshold,
    ternarize_from,
    count_from,
    ternarize_absmax,
    ternary_scales,
    unpack_hf,
    convert_floats,
    dequantize,
    matmul,
    float_matmul,
    quantize,
    dequantize_blocks,
    row_layouts,
    {tl1_pack, tl1_unpack, lookup_ordered_bytes, tl1_order, tl1_multiply},
    {tl2_pack, tl2_unpack, lookup_ordered_bytes, tl2_order, tl2_multiply},
    {norm, round_activations, scale_sums, add_group, rotate, gate, add_scaled, soften, attend, log_probability},
};

}  // namespace bitconv::BITCONV_ISA
