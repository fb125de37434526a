// Arrays as the Python module takes them, and what is asked of their sizes.
//
// An array without elements may have dimensions whose product wraps, or that are too large to loop over: products are
// checked, and there is no kernel to run where the result is empty.
#pragma once
#include "kernels.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <tuple>

namespace nb = nanobind;
using namespace nb::literals;

namespace bitconv {

/// An array as kernels take it: contiguous, and aligned for its type, without which to read it is undefined.
template <class T, class... Shape>
struct Array : nb::ndarray<T, nb::numpy, nb::c_contig, nb::device::cpu, Shape...> {
    using Unchecked = nb::ndarray<T, nb::numpy, nb::c_contig, nb::device::cpu, Shape...>;
    Array() = default;
    explicit Array(Unchecked array) : Unchecked(std::move(array)) {}
    bool aligned() const { return reinterpret_cast<uintptr_t>(this->data()) % alignof(T) == 0; }
};

}  // namespace bitconv

/// Every array of every function passes here. One that is not aligned is a TypeError, as one of another dtype is.
template <class T, class... Shape>
struct nb::detail::type_caster<bitconv::Array<T, Shape...>> {
    using Taken = bitconv::Array<T, Shape...>;
    using Unchecked = make_caster<typename Taken::Unchecked>;
    NB_TYPE_CASTER(Taken, Unchecked::Name)

    bool from_python(handle source, uint8_t flags, cleanup_list* cleanup) noexcept {
        Unchecked unchecked;
        if (!unchecked.from_python(source, flags, cleanup)) return false;
        value = Taken(std::move(unchecked.value));
        return value.aligned();
    }
};

namespace bitconv {

using Bytes = Array<const uint8_t>;
using OutBytes = Array<uint8_t>;
using Trits = Array<const int8_t, nb::ndim<2>>;
using OutTrits = Array<int8_t, nb::ndim<2>>;
using Activations = Array<const int8_t, nb::ndim<2>>;
using Products = Array<int32_t, nb::ndim<2>>;
using Scales = Array<const float>;
using OutScales = Array<float>;
using FloatVectors = Array<const float, nb::ndim<2>>;
using OutFloatVectors = Array<float, nb::ndim<2>>;

using Release = nb::call_guard<nb::gil_scoped_release>;

inline void require(bool condition, const std::string& message) {
    if (!condition) throw nb::value_error(message.c_str());
}

inline void require_size(const std::string& what, size_t size, size_t expected) {
    require(size == expected,
            what + " has " + std::to_string(size) + " elements, expected " + std::to_string(expected));
}

inline void require_multiple(const std::string& what, size_t size, size_t unit) {
    require(size % unit == 0, what + " is " + std::to_string(size) + ", not a multiple of " + std::to_string(unit));
}

/// a * b, which must not wrap.
inline size_t times(size_t a, size_t b) {
    require(b == 0 || a <= SIZE_MAX / b, std::to_string(a) + " times " + std::to_string(b) + " is too large");
    return a * b;
}

inline Float float_type(const std::string& name) {
    if (name == "f32") return Float::f32;
    if (name == "f16") return Float::f16;
    if (name == "bf16") return Float::bf16;
    throw nb::value_error(("dtype is '" + name + "', expected f32, f16 or bf16").c_str());
}

/// The type, and the values and bytes of its blocks.
inline std::tuple<Quant, size_t, size_t> quantized_type(const std::string& name) {
    if (name == "q8_0") return {Quant::q8_0, 32, 34};
    if (name == "q6_k") return {Quant::q6_k, 256, 210};
    if (name == "q4_k") return {Quant::q4_k, 256, 144};
    throw nb::value_error(("dtype is '" + name + "', expected q8_0, q6_k or q4_k").c_str());
}

inline size_t float_bytes(Float type) { return type == Float::f32 ? 4 : 2; }

inline const RowLayout& row_layout(const std::string& name) {
    for (const RowLayout& layout : active().layouts) {
        if (name == layout.name) return layout;
    }
    throw nb::value_error(("there is no layout '" + name + "' that stores row after row").c_str());
}

inline void require_rows(const RowLayout& layout, size_t rows, size_t cols, size_t packed_size) {
    require_multiple("the number of rows", rows, layout.row_group);
    require_multiple("the number of columns", cols, layout.row_group > 1 ? 1 : layout.geometry.block);
    times(rows, layout.geometry.row_header + cols);  // as large as any product in bytes() and scales()
    require_size("the packed array", packed_size, layout.bytes(rows, cols));
}

inline void require_tiles(size_t rows, const Tiles& tiles) {
    require(tiles.bm > 0 && tiles.bk > 0, "bm or bk is 0");
    require_multiple("the number of rows", rows, tiles.bm);
    require_multiple("bm", tiles.bm, tiles.bmm);
}

inline Tiles tl1_tiles(size_t rows, size_t cols, size_t packed_size, size_t bm, size_t bk, size_t bmm) {
    require(bmm == 32 || bmm == 64, "bmm is " + std::to_string(bmm) + ", not 32 or 64");
    const Tiles tiles{bm, bk, bmm};
    require_tiles(rows, tiles);
    require_multiple("the number of columns", cols, bk);
    require_multiple("bk", bk, 256 / bmm);
    require_size("the packed array", packed_size, times(rows, cols) / 4);
    return tiles;
}

template <class Part>
Tiles tl2_tiles(size_t rows, size_t cols, size_t bm, size_t bk, const Part& values, const Part& signs, const Part& pairs) {
    const Tiles tiles{bm, bk, 32};
    require_tiles(rows, tiles);
    require_multiple("bk", bk, 24);
    const size_t pair_columns = cols % bk, triple_columns = cols - pair_columns;
    require_multiple("the number of columns beyond a multiple of bk", pair_columns, 32);
    require_size("values", values.size(), times(rows, triple_columns) / 6);
    require_size("signs", signs.size(), times(rows, triple_columns) / 24);
    require_size("pairs", pairs.size(), times(rows, pair_columns) / 4);
    return tiles;
}

// Parts of the module in files of their own: classes of forward passes, the strings of vocabularies.
void define_forward(nanobind::module_& m);
void define_strings(nanobind::module_& m);

}  // namespace bitconv
