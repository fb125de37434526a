// Every layout that stores row after row: its header and a line. The table of an instruction set, the functions of the
// Python module and the tests follow from this list.
#pragma once
#include "i2_s.hpp"
#include "i2_s_row4.hpp"
#include "iq1_bn.hpp"
#include "iq2_bn.hpp"
#include "q2_0.hpp"
#include "rows.hpp"
#include "tq1_0.hpp"
#include "tq2_0.hpp"
#ifdef BITCONV_SIMD
#include "dot.hpp"
#else
#include "unpacked.hpp"
#endif

namespace bitconv::BITCONV_ISA {

template <class L>
constexpr RowLayout row_layout() {
#ifdef BITCONV_SIMD
    return {L::name, L::geometry, 1, pack<L>, unpack<L>, dot_ordered_bytes<L>, dot_order<L>, dot_multiply<L>};
#else
    return {L::name, L::geometry, 1, pack<L>, unpack<L>, plain_bytes, plain_order, unpacked_multiply<L>};
#endif
}

constexpr RowLayout row_layouts[] = {
    row_layout<I2S>(),
    row_layout<I2SArm64>(),
    i2_s_row4,
    row_layout<TQ1_0>(),
    row_layout<TQ2_0>(),
    row_layout<Q2_0>(),
    row_layout<IQ2BN>(),
    row_layout<IQ1BN>(),
};

}  // namespace bitconv::BITCONV_ISA
