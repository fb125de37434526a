// The Python module bitconv._kernels: checks dtypes, alignment, sizes and scales, then runs a kernel without the GIL.
#include "arrays.hpp"

#include <cmath>
#include <cstdlib>
#include <nanobind/stl/optional.h>

namespace bitconv {
namespace {

/// The bit pattern of infinity, which no magnitude exceeds.
uint32_t infinity_of(Float type) {
    return type == Float::f32 ? 0x7f800000u : type == Float::f16 ? 0x7c00u : 0x7f80u;
}

/// The number of floats in x.
size_t float_count(const Bytes& x, Float type) {
    require_multiple("the size of x in bytes", x.size(), float_bytes(type));
    return x.size() / float_bytes(type);
}

/// How many of n consecutive values share each of so many scales.
size_t group_of(size_t n, size_t scales) {
    require(scales > 0, "there are no scales");
    require_multiple("the number of values", n, scales);
    return n / scales;
}

/// A scale must stay finite when stored as `type`, and only 0 may become 0.
void require_scales(const Scales& scales, Float type) {
    const float limit = type == Float::f16 ? 65520.0f : type == Float::bf16 ? 0x1.ffp+127f : INFINITY;
    const float least = type == Float::f16 ? 0x1p-25f : type == Float::bf16 ? 0x1p-134f : 0.0f;  // it rounds to 0
    for (size_t i = 0; i < scales.size(); ++i) {
        const float magnitude = std::fabs(scales.data()[i]);
        if (!(magnitude < limit)) {
            require(false, "scale " + std::to_string(scales.data()[i]) + " is too large for its type");
        }
        if (magnitude != 0.0f && magnitude <= least) {
            require(false, std::string("scale is too small for ") + (type == Float::f16 ? "float16" : "bfloat16"));
        }
    }
}

struct MatmulSizes {
    size_t rows, cols, n;
};

MatmulSizes matmul_sizes(const Activations& x, const Products& out) {
    require(x.shape(0) == out.shape(0), "x has " + std::to_string(x.shape(0)) + " vectors, out " +
                                            std::to_string(out.shape(0)));
    require(x.shape(1) < size_t{1} << 23, "x has too many columns for int32 products");
    return {out.shape(1), x.shape(1), x.shape(0)};
}

void define_row_layouts(nb::module_& m) {
    m.def("row_layouts", [] {
        std::vector<std::string> names;
        for (const RowLayout& layout : active().layouts) names.emplace_back(layout.name);
        return names;
    }, "Return the names of the layouts that pack_rows, unpack_rows and matmul_rows take.");

    m.def("pack_rows", [](const std::string& name, const Trits& trits, const Scales& scales, const OutBytes& out) {
        const RowLayout& layout = row_layout(name);
        require(layout.pack, name + " is only read");
        require_rows(layout, trits.shape(0), trits.shape(1), out.size());
        require_size("scales", scales.size(), layout.scales(trits.shape(0), trits.shape(1)));
        require_scales(scales, layout.geometry.row_header == 4 ? Float::f32 : Float::f16);
        if (out.size() > 0) layout.pack(trits.data(), scales.data(), trits.shape(0), trits.shape(1), out.data());
    }, "layout"_a, "trits"_a.noconvert(), "scales"_a.noconvert(), "out"_a.noconvert(), Release(),
       "Pack rows. scales: [rows, cols / block] or [rows], as the layout has them, or none.");

    m.def("unpack_rows", [](const std::string& name, const Bytes& packed, const OutTrits& out,
                            const OutScales& scales) {
        const RowLayout& layout = row_layout(name);
        require_rows(layout, out.shape(0), out.shape(1), packed.size());
        require_size("scales", scales.size(), layout.scales(out.shape(0), out.shape(1)));
        if (packed.size() == 0) return int64_t{-1};
        return layout.unpack(packed.data(), out.shape(0), out.shape(1), out.data(), scales.data());
    }, "layout"_a, "packed"_a.noconvert(), "out"_a.noconvert(), "scales"_a.noconvert(), Release(),
       "Unpack rows. scales: as pack_rows takes them.");

    m.def("matmul_rows", [](const std::string& name, const Bytes& packed, const Activations& x, const Products& out) {
        const RowLayout& layout = row_layout(name);
        require(layout.multiply, name + " is only read");
        const auto [rows, cols, n] = matmul_sizes(x, out);
        require_rows(layout, rows, cols, packed.size());
        if (out.size() > 0) layout.matmul(packed.data(), x.data(), out.data(), rows, cols, n);
    }, "layout"_a, "packed"_a.noconvert(), "x"_a.noconvert(), "out"_a.noconvert(), Release(),
       "Multiply packed rows with activations.");
}

void define_tl1(nb::module_& m) {
    m.def("tl1_pack", [](const Trits& trits, size_t bm, size_t bk, size_t bmm, const OutBytes& out) {
        const size_t rows = trits.shape(0), cols = trits.shape(1);
        const Tiles tiles = tl1_tiles(rows, cols, out.size(), bm, bk, bmm);
        if (out.size() > 0) active().tl1.pack(trits.data(), rows, cols, tiles, out.data());
    }, "trits"_a.noconvert(), "bm"_a, "bk"_a, "bmm"_a, "out"_a.noconvert(), Release());

    m.def("tl1_unpack", [](const Bytes& packed, size_t bm, size_t bk, size_t bmm, const OutTrits& out) {
        const size_t rows = out.shape(0), cols = out.shape(1);
        const Tiles tiles = tl1_tiles(rows, cols, packed.size(), bm, bk, bmm);
        return out.size() > 0 ? active().tl1.unpack(packed.data(), rows, cols, tiles, out.data()) : -1;
    }, "packed"_a.noconvert(), "bm"_a, "bk"_a, "bmm"_a, "out"_a.noconvert(), Release());

    m.def("tl1_matmul", [](const Bytes& packed, size_t bm, size_t bk, size_t bmm, const Activations& x,
                           const Products& out) {
        const auto [rows, cols, n] = matmul_sizes(x, out);
        const Tiles tiles = tl1_tiles(rows, cols, packed.size(), bm, bk, bmm);
        if (out.size() > 0) active().tl1.matmul(packed.data(), x.data(), out.data(), rows, cols, n, tiles);
    }, "packed"_a.noconvert(), "bm"_a, "bk"_a, "bmm"_a, "x"_a.noconvert(), "out"_a.noconvert(), Release());
}

void define_tl2(nb::module_& m) {
    m.def("tl2_pack", [](const Trits& trits, size_t bm, size_t bk, const OutBytes& values, const OutBytes& signs,
                         const OutBytes& pairs) {
        const size_t rows = trits.shape(0), cols = trits.shape(1);
        const Tiles tiles = tl2_tiles(rows, cols, bm, bk, values, signs, pairs);
        if (trits.size() == 0) return;
        active().tl2.pack(trits.data(), rows, cols, tiles, {values.data(), signs.data(), pairs.data()});
    }, "trits"_a.noconvert(), "bm"_a, "bk"_a, "values"_a.noconvert(), "signs"_a.noconvert(), "pairs"_a.noconvert(),
       Release());

    m.def("tl2_unpack", [](const Bytes& values, const Bytes& signs, const Bytes& pairs, size_t bm, size_t bk,
                           const OutTrits& out) {
        const size_t rows = out.shape(0), cols = out.shape(1);
        const Tiles tiles = tl2_tiles(rows, cols, bm, bk, values, signs, pairs);
        if (out.size() == 0) return int64_t{-1};
        return active().tl2.unpack({values.data(), signs.data(), pairs.data()}, rows, cols, tiles, out.data());
    }, "values"_a.noconvert(), "signs"_a.noconvert(), "pairs"_a.noconvert(), "bm"_a, "bk"_a, "out"_a.noconvert(),
       Release());

    m.def("tl2_matmul", [](const Bytes& values, const Bytes& signs, const Bytes& pairs, size_t bm, size_t bk,
                           const Activations& x, const Products& out) {
        const auto [rows, cols, n] = matmul_sizes(x, out);
        const Tiles tiles = tl2_tiles(rows, cols, bm, bk, values, signs, pairs);
        const Tl2In packed{values.data(), signs.data(), pairs.data()};
        if (out.size() > 0) active().tl2.matmul(packed, x.data(), out.data(), rows, cols, n, tiles);
    }, "values"_a.noconvert(), "signs"_a.noconvert(), "pairs"_a.noconvert(), "bm"_a, "bk"_a, "x"_a.noconvert(),
       "out"_a.noconvert(), Release());
}

}  // namespace
}  // namespace bitconv

NB_MODULE(_kernels, m) {
    using namespace bitconv;

    m.doc() = R"(The native kernels, for `bitconv.layouts` and the code that reads checkpoints.

Arrays are C-contiguous; results are written into `out` (and `scales`), which the caller provides. Matrices are
trits int8 [rows, cols], activations x int8 [n, cols], products int32 [n, rows], out[v, r] being the sum over k
of trit[r, k] * x[v, k]. Floats are raw little-endian bytes of dtype "f32", "f16" or "bf16".

A layout has NAME_pack, NAME_unpack and NAME_matmul, as far as it needs them. Every unpack returns the lowest index
in `out` that an invalid code stands for, or -1; with an invalid code the contents of `out` are undefined. Layouts
with a scale in each block take scales [rows, cols / block], those with one in each row scales [rows].
quantize and dequantize_blocks go between floats and ggml's blocks of dense weights, q8_0, q6_k and q4_k. quantize
returns the index of a value that is not finite or too large, dequantize_blocks the first in a block whose scale is not
finite, or -1.

Another dtype or memory order raises TypeError; another size, or a scale that its type cannot hold, raises
ValueError. Where scales may have any size, each one is that of size / len(scales) consecutive values. The GIL is
released while a kernel runs.)";

    if (const char* name = std::getenv("BITCONV_ISA"); name && *name && !use(name)) {
        const std::string message = std::string("BITCONV_ISA names '") + name + "', which this CPU or build has not";
        throw nb::import_error(message.c_str());
    }

    m.def("isas", [] {
        std::vector<std::string> names;
        for (const Kernels* table : available()) names.emplace_back(table->name);
        return names;
    }, "Return the instruction sets that can be used here, the portable one first, the fastest last.");
    m.def("isa", [] { return std::string(active().name); }, 
          "Return the instruction set in use: the fastest, or the one that the environment's BITCONV_ISA names.");
    m.def("use_isa", [](const std::string& name) {
        require(use(name), "instruction set '" + name + "' is not available");
    }, "name"_a, "Use this instruction set from now on, in all threads.");

    m.def("abs_sum", [](const Bytes& x, const std::string& dtype) {
        const Float type = float_type(dtype);
        return active().abs_sum(x.data(), float_count(x, type), type);
    }, "x"_a.noconvert(), "dtype"_a, Release(),
       R"(Return the sum of |x| in float64: the same bits on every CPU, not finite if an element is not.

There are 64 partial sums, number l adding the elements i with i % 64 = l in ascending order; then
number l takes l + 32, for l < 32, then l + 16, and so on down to 1.)");

    m.def("ternarize", [](const Bytes& x, const std::string& dtype, float inverse_scale, const Array<int8_t>& out) {
        const Float type = float_type(dtype);
        require(inverse_scale > 0 && std::isfinite(inverse_scale), "inverse_scale is not positive and finite");
        require_size("out", out.size(), float_count(x, type));
        active().ternarize(x.data(), out.size(), type, inverse_scale, out.data());
    }, "x"_a.noconvert(), "dtype"_a, "inverse_scale"_a, "out"_a.noconvert(), Release(),
       "Write clip(round_half_even(float32(x) * inverse_scale), -1, 1), the product in float32; 0 for NaN.");

    m.def("threshold", [](const std::string& dtype, float inverse_scale, const std::string& product, bool away) {
        require(inverse_scale > 0 && std::isfinite(inverse_scale), "inverse_scale is not positive and finite");
        return active().threshold(float_type(dtype), inverse_scale, float_type(product), away);
    }, "dtype"_a, "inverse_scale"_a, "product"_a = "f32", "away"_a = false,
       R"(Return the bit pattern of the least magnitude whose product with inverse_scale exceeds one half.

Weight and product are rounded to the type of the product. away: the least whose product is not below one half.)");

    m.def("ternarize_from", [](const Bytes& x, const std::string& dtype, uint32_t least, const Array<int8_t>& out,
                               std::optional<uint32_t> other) {
        const Float type = float_type(dtype);
        require_size("out", out.size(), float_count(x, type));
        require(least <= infinity_of(type) && other.value_or(0) <= infinity_of(type), "least is no magnitude");
        return active().ternarize_from(x.data(), out.size(), type, least, other.value_or(least), out.data());
    }, "x"_a.noconvert(), "dtype"_a, "least"_a, "out"_a.noconvert(), "other"_a = nb::none(), Release(),
       R"(Write the sign of each float whose magnitude's bit pattern is `least` or more, and 0 for others and NaN.

Returns how many of them are others from the pattern `other` on, or 0.)");

    m.def("count_from", [](const Bytes& x, const std::string& dtype, const Array<const uint32_t>& least,
                           const Array<int64_t>& out) {
        const Float type = float_type(dtype);
        const size_t n = float_count(x, type);
        require_size("out", out.size(), least.size());
        for (size_t k = 0; k < least.size(); ++k) {
            require(least.data()[k] <= infinity_of(type), "least is no magnitude");
        }
        active().count_from(x.data(), n, type, least.data(), least.size(), out.data());
    }, "x"_a.noconvert(), "dtype"_a, "least"_a.noconvert(), "out"_a.noconvert(), Release(),
       "Write for each bit pattern how many floats have a magnitude whose pattern is that or more, NaN included.");

    m.def("ternarize_absmax", [](const Bytes& x, const std::string& dtype, const Array<int8_t>& out,
                                 const OutScales& scales) {
        const Float type = float_type(dtype);
        const size_t n = float_count(x, type);
        require_size("out", out.size(), n);
        return active().ternarize_absmax(x.data(), n, type, group_of(n, scales.size()), out.data(), scales.data());
    }, "x"_a.noconvert(), "dtype"_a, "out"_a.noconvert(), "scales"_a.noconvert(), Release(),
       R"(Write round_half_even(x / scale) of each group, the quotient in the floats' own type.

The scale is the largest magnitude of the group and 1e-8 at least, and is written as 0 where all trits are. Returns the
index at which the first group starts that is not finite, or -1.)");

    m.def("ternary_scales", [](const Bytes& x, const std::string& dtype, const OutScales& scales) {
        const Float type = float_type(dtype);
        const size_t n = float_count(x, type);
        return active().ternary_scales(x.data(), n, type, group_of(n, scales.size()), scales.data());
    }, "x"_a.noconvert(), "dtype"_a, "scales"_a.noconvert(), Release(),
       R"(Write the largest magnitude of the floats of each scale.

Returns the lowest index of a float that is neither zero nor plus or minus that finite magnitude, or -1; with one,
the contents of `scales` are undefined.)");

    m.def("unpack_hf", [](const Bytes& packed, int quarter, const Array<int8_t>& out) {
        require(0 <= quarter && quarter < 4, "quarter is not 0 to 3");
        require_size("out", out.size(), packed.size());
        return active().unpack_hf(packed.data(), packed.size(), quarter, out.data());
    }, "packed"_a.noconvert(), "quarter"_a, "out"_a.noconvert(), Release(),
       "Write bits 2q+1:2q of each byte minus 1, q = quarter: one of the four rows in a row of bytes.");

    m.def("convert_floats", [](const Bytes& x, const std::string& dtype, const OutBytes& out,
                               const std::string& out_dtype) {
        const Float type = float_type(dtype), out_type = float_type(out_dtype);
        const size_t n = float_count(x, type);
        require_size("out", out.size(), n * float_bytes(out_type));
        return active().convert_floats(x.data(), n, type, out.data(), out_type);
    }, "x"_a.noconvert(), "dtype"_a, "out"_a.noconvert(), "out_dtype"_a, Release(),
       R"(Convert, rounding to nearest even.

Returns the lowest index of an element that is not finite, before or after, or -1.)");

    m.def("dequantize", [](const Array<const int8_t>& trits, const Scales& scales, const OutBytes& out,
                           const std::string& out_dtype) {
        const Float out_type = float_type(out_dtype);
        const size_t n = trits.size(), group = group_of(n, scales.size());
        require_scales(scales, out_type);
        require_size("out", out.size(), times(n, float_bytes(out_type)));
        active().dequantize(trits.data(), n, scales.data(), group, out.data(), out_type);
    }, "trits"_a.noconvert(), "scales"_a.noconvert(), "out"_a.noconvert(), "out_dtype"_a, Release(),
       "Write trits * scales, rounded to nearest even; +0 for trit 0.");

    m.def("matmul", [](const Trits& trits, const Activations& x, const Products& out) {
        const auto [rows, cols, n] = matmul_sizes(x, out);
        require(trits.shape(0) == rows && trits.shape(1) == cols, "the shapes of trits, x and out do not fit");
        if (out.size() > 0) active().matmul(trits.data(), x.data(), out.data(), rows, cols, n);
    }, "trits"_a.noconvert(), "x"_a.noconvert(), "out"_a.noconvert(), Release(),
       "Multiply an unpacked matrix, by code that shares nothing with the packed layouts' products.");

    m.def("float_matmul", [](const Bytes& w, const std::string& dtype, const FloatVectors& x, const OutFloatVectors& out) {
        const Float type = float_type(dtype);
        const size_t n = x.shape(0), cols = x.shape(1), rows = out.shape(1);
        require(out.shape(0) == n, "x has " + std::to_string(n) + " vectors, out " + std::to_string(out.shape(0)));
        require_size("w", float_count(w, type), times(rows, cols));
        if (out.size() > 0) active().float_matmul(w.data(), type, x.data(), out.data(), rows, rows, cols, n);
    }, "w"_a.noconvert(), "dtype"_a, "x"_a.noconvert(), "out"_a.noconvert(), Release(),
       R"(Write the products of the rows of floats w [rows, cols] with the vectors x [n, cols], each product rounded.

There are 16 partial sums, number l adding the columns k with k % 16 = l in ascending order; then number l
takes l + 8, for l < 8, and so on down to 1.)");

    m.def("quantize", [](const Bytes& x, const std::string& dtype, const OutBytes& out, const std::string& out_dtype) {
        const Float type = float_type(dtype);
        const auto [quant, block, block_bytes] = quantized_type(out_dtype);
        const size_t n = float_count(x, type);
        require_multiple("the number of values", n, block);
        require_size("out", out.size(), n / block * block_bytes);
        return active().quantize(x.data(), n, type, out.data(), quant);
    }, "x"_a.noconvert(), "dtype"_a, "out"_a.noconvert(), "out_dtype"_a, Release());

    m.def("dequantize_blocks", [](const Bytes& packed, const std::string& dtype, const OutScales& out) {
        const auto [quant, block, block_bytes] = quantized_type(dtype);
        require_multiple("the number of values", out.size(), block);
        require_size("packed", packed.size(), out.size() / block * block_bytes);
        return active().dequantize_blocks(packed.data(), out.size(), quant, out.data());
    }, "packed"_a.noconvert(), "dtype"_a, "out"_a.noconvert(), Release());

    define_row_layouts(m);
    define_tl1(m);
    define_tl2(m);
    define_forward(m);
    define_strings(m);
}
