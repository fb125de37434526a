// The native kernels of bitconv: one table of function pointers an instruction set, chosen once at run time.
//
// Matrices are C-contiguous: trits int8 [rows, cols] with values -1, 0, +1; activations x int8 [n, cols], any
// value; products int32 [n, rows], exact while cols * 128 < 2^31. Floats and packed weights are raw
// little-endian bytes without alignment. Callers have checked every size; kernels check only codes.
#pragma once

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels are written for little-endian machines"
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#pragma fp_contract(off)  // no option says so, and until Visual Studio 2022 it was on
#endif

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace bitconv {

enum class Float { f32, f16, bf16 };

/// ggml's quantized blocks of dense weights.
enum class Quant { q8_0, q6_k, q4_k };

/// What a feed-forward network applies to its gate: x / (1 + exp(-x)), or the square of x where that is positive.
enum class Activation { silu, relu2 };

/// Where a layout stores scales.
enum class Scale { none, row, block };

/// Vectors that products take together: where vectors are ordered in parts, each starts at a multiple of it.
constexpr size_t vectors_at_once = 16;

/// Zeroed scratch memory, aligned to 64 bytes.
class Buffer {
public:
    explicit Buffer(size_t bytes);
    ~Buffer();
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    uint8_t* data() { return data_; }

private:
    uint8_t* data_;
};

/// Sizes of a layout that stores row after row. A row is `row_header` bytes and cols / block blocks.
struct Geometry {
    size_t block;        ///< columns in a block
    size_t block_bytes;  ///< bytes of a block
    size_t row_header;   ///< bytes of the scale before the blocks of a row
    Scale scale;
};

/// A layout that stores row after row (or, where `row_group` is more than 1, group of rows after group).
struct RowLayout {
    const char* name;
    Geometry geometry;
    size_t row_group;  ///< rows come in multiples of this

    /// trits [rows, cols] and, where the layout stores scales, scales [rows] or [rows, cols / block] -> out, the
    /// scales rounded to the layout's type. Null for a layout that is read only.
    void (*pack)(const int8_t* trits, const float* scales, size_t rows, size_t cols, uint8_t* out);

    /// packed -> trits and scales of the same shapes.
    /// Returns the lowest index in trits that an invalid code stands for, or -1.
    int64_t (*unpack)(const uint8_t* packed, size_t rows, size_t cols, int8_t* trits, float* scales);

    /// Bytes of a vector in the order in which multiply takes it. Null, like the next two, for a layout that is read
    /// only.
    size_t (*ordered_bytes)(size_t cols);

    /// x [n, cols] -> vectors in that order.
    void (*order)(const int8_t* x, size_t cols, size_t n, uint8_t* ordered);

    /// out[v * stride + r] = sum over k of trit[r, k] * x[v, k], straight from the packed codes, which must be valid.
    /// Scales play no part.
    void (*multiply)(const uint8_t* packed, size_t rows, size_t cols, const uint8_t* ordered, size_t n, int32_t* out,
                     size_t stride);

    /// Both: out [n, rows] from x [n, cols].
    void matmul(const uint8_t* packed, const int8_t* x, int32_t* out, size_t rows, size_t cols, size_t n) const {
        Buffer ordered(n * ordered_bytes(cols));
        order(x, cols, n, ordered.data());
        multiply(packed, rows, cols, ordered.data(), n, out, rows);
    }

    constexpr size_t bytes(size_t rows, size_t cols) const {
        return rows * geometry.row_header + rows * cols / geometry.block * geometry.block_bytes;
    }
    constexpr size_t scales(size_t rows, size_t cols) const {
        return geometry.scale == Scale::none ? 0 : geometry.scale == Scale::row ? rows : rows * cols / geometry.block;
    }
};

/// All of them, as layouts/list.hpp lists them.
class RowLayouts {
public:
    template <size_t Count>
    constexpr RowLayouts(const RowLayout (&list)[Count]) : begin_(list), end_(list + Count) {}
    constexpr const RowLayout* begin() const { return begin_; }
    constexpr const RowLayout* end() const { return end_; }

private:
    const RowLayout *begin_, *end_;
};

/// The tile sizes that a runner of TL1 or TL2 was built with; rows are a multiple of bm. TL2 has bmm 32.
struct Tiles {
    size_t bm, bk, bmm;
};

/// A layout in tiles; functions as in RowLayout.
template <class In, class Out>
struct TiledLayout {
    void (*pack)(const int8_t* trits, size_t rows, size_t cols, const Tiles& tiles, Out out);
    int64_t (*unpack)(In packed, size_t rows, size_t cols, const Tiles& tiles, int8_t* trits);
    size_t (*ordered_bytes)(size_t cols);
    void (*order)(const int8_t* x, size_t cols, size_t n, const Tiles& tiles, uint8_t* ordered);
    void (*multiply)(In packed, size_t rows, size_t cols, const Tiles& tiles, const uint8_t* ordered, size_t n,
                     int32_t* out, size_t stride);

    void matmul(In packed, const int8_t* x, int32_t* out, size_t rows, size_t cols, size_t n, const Tiles& tiles) const {
        Buffer ordered(n * ordered_bytes(cols));
        order(x, cols, n, tiles, ordered.data());
        multiply(packed, rows, cols, tiles, ordered.data(), n, out, rows);
    }
};

using Tl1 = TiledLayout<const uint8_t*, uint8_t*>;

/// The parts of TL2, each contiguous for any number of blocks of bm rows. With three = cols - cols % bk and
/// two = cols % bk, a row has three / 6 bytes of values, three / 24 of signs and two / 4 of pairs.
template <class Byte>
struct Tl2Parts {
    Byte *values, *signs, *pairs;
};
using Tl2In = Tl2Parts<const uint8_t>;
using Tl2Out = Tl2Parts<uint8_t>;

using Tl2 = TiledLayout<const Tl2In&, const Tl2Out&>;

/// What a layer of a model computes beside its products, in float32, each operation rounded. Sums have 16 partial
/// sums, folded as in abs_sum; exp is 2^n times a polynomial of degree 7, 0 below -87 and infinite above 88.
struct Steps {
    /// out[i] = x[i] * (1 / sqrt(mean of squares + eps)) * weight[i].
    void (*norm)(const float* x, const float* weight, size_t n, float eps, float* out);

    /// out[i] = x[i] * divisor, rounded half to even, -128 to 127; returns divisor = 1 / the largest magnitude, 1e-5 at
    /// least, * 127.
    float (*round_activations)(const float* x, size_t n, int8_t* out);

    /// out[r] = sums[r] * (scale / divisor), the scale of row r being scales[r * stride].
    void (*scale_sums)(const int32_t* sums, size_t rows, const float* scales, size_t stride, float divisor, float* out);

    /// totals[r] += sums[r] * scales[r * stride], in float64.
    void (*add_group)(const int32_t* sums, size_t rows, const float* scales, size_t stride, double* totals);

    /// Rotates a head in place, by the angles whose cos and sin these are, [dims / 2]: neighbouring pairs, or i with
    /// i + dims / 2.
    void (*rotate)(float* head, size_t dims, const float* cos, const float* sin, bool neighbours);

    /// out[i] = activation(gate[i]) * up[i]; limit: gate is at most this, up between plus and minus it.
    void (*gate)(const float* gate, const float* up, size_t n, Activation activation, float limit, float* out);

    /// x[i] += y[i] * scale.
    void (*add_scaled)(const float* y, size_t n, float scale, float* x);

    /// scores[first to end - 1] -> exp(score * scale - the largest); returns their sum.
    float (*soften)(float* scores, size_t first, size_t end, float scale);

    /// What `count` queries [count, dims] make of the tokens first to end - 1: the values, weighted by
    /// softmax(query . key / sqrt(dims)). keys and values: as KeysAndValues says, of one head. scratch:
    /// attend_scratch() floats.
    void (*attend)(const float* queries, size_t count, size_t dims, const float* keys, const float* values,
                   size_t capacity, size_t first, size_t end, float* scratch, float* out);

    /// The natural logarithm of softmax(logits)[token], in float64, with an exp of degree 13.
    double (*log_probability)(const float* logits, size_t n, size_t token);
};

/// Tokens whose keys stand together, element by element, and elements of a value that do.
constexpr size_t attention_block = 32;

constexpr size_t in_blocks(size_t n) { return (n + attention_block - 1) / attention_block * attention_block; }

constexpr size_t attend_scratch(size_t count, size_t end) { return count * (in_blocks(end) + 1) + attention_block; }

struct Kernels {
    const char* name;

    /// Sum of |x[i]| in float64, in an order that is the same on every instruction set: 64 partial sums, number
    /// l adding the x[i] with i % 64 = l in ascending order; then partial sum l takes l + 32, for l < 32, then
    /// l + 16, and so on down to 1. NaN or infinity in x makes the sum NaN or infinity.
    double (*abs_sum)(const uint8_t* x, size_t n, Float type);

    /// out[i] = p > 0.5 ? 1 : p < -0.5 ? -1 : 0, where p = float32(x[i]) * inverse_scale in float32; 0 for NaN.
    /// This is clip(round_half_even(p), -1, 1). inverse_scale is positive and finite.
    void (*ternarize)(const uint8_t* x, size_t n, Float type, float inverse_scale, int8_t* out);

    /// The bit pattern of the least magnitude of a type that is a trit other than 0: that whose product with
    /// inverse_scale, positive and finite, exceeds one half, or with `away` is not below it. Weight and product are
    /// rounded to the type of the product. Infinity's pattern where no finite one is.
    uint32_t (*threshold)(Float type, float inverse_scale, Float product, bool away);

    /// The same as ternarize for the pattern that threshold returns. Returns how many are others for the pattern `other`.
    int64_t (*ternarize_from)(const uint8_t* x, size_t n, Float type, uint32_t least, uint32_t other, int8_t* out);

    /// out[k] = how many x[i] have a magnitude whose bit pattern is least[k] or more.
    void (*count_from)(const uint8_t* x, size_t n, Float type, const uint32_t* least, size_t count, int64_t* out);

    /// scales[g] = the largest magnitude in the g-th group, 1e-8 at least; out[i] = x[i] / scale in the type of x,
    /// rounded half to even. A group without a trit other than 0 has the scale 0. n is a multiple of group.
    /// Returns the first index of the first group that is not finite, after which all is undefined, or -1.
    int64_t (*ternarize_absmax)(const uint8_t* x, size_t n, Float type, size_t group, int8_t* out, float* scales);

    /// scales[g] = the largest magnitude in the g-th `group` of floats, as float32; n is a multiple of group.
    /// Returns the lowest i for which x[i] is neither zero nor plus or minus that finite magnitude, or -1; with such
    /// an i, the scales of later groups are undefined.
    int64_t (*ternary_scales)(const uint8_t* x, size_t n, Float type, size_t group, float* scales);

    /// out[i] = code - 1, the code being bits 2q+1:2q of packed[i] with q = quarter, 0 to 3.
    /// Returns the lowest i whose code is 3, or -1.
    int64_t (*unpack_hf)(const uint8_t* packed, size_t n, int quarter, int8_t* out);

    /// Converts n floats, rounding to nearest even. Returns the lowest index of a NaN, an infinity, or a value
    /// that becomes infinite by rounding, or -1.
    int64_t (*convert_floats)(const uint8_t* x, size_t n, Float type, uint8_t* out, Float out_type);

    /// out[i] = trits[i] * scales[i / group] rounded to nearest even; +0 for trit 0.
    void (*dequantize)(const int8_t* trits, size_t n, const float* scales, size_t group, uint8_t* out, Float out_type);

    /// out[v, r] = sum over k of trits[r, k] * x[v, k]. With fewer than 2^17 columns, trits may hold any int8.
    void (*matmul)(const int8_t* trits, const int8_t* x, int32_t* out, size_t rows, size_t cols, size_t n);

    /// out[v * stride + r] = sum over k of w[r, k] * x[v, k] in float32, in an order that is the same on every
    /// instruction set: 16 partial sums, folded as in abs_sum.
    void (*float_matmul)(const uint8_t* w, Float type, const float* x, float* out, size_t stride, size_t rows,
                         size_t cols, size_t n);

    /// Quantizes n floats, whole blocks, as ggml does. Returns the index of a NaN or an infinity, or of the largest
    /// magnitude in blocks whose scales the type cannot hold, or -1. The bytes after such an index are undefined.
    int64_t (*quantize)(const uint8_t* x, size_t n, Float type, uint8_t* out, Quant out_type);

    /// The n values of whole blocks. Returns the index of the first in a block whose scale is not finite, or -1.
    int64_t (*dequantize_blocks)(const uint8_t* packed, size_t n, Quant type, float* out);

    RowLayouts layouts;
    Tl1 tl1;
    Tl2 tl2;
    Steps steps;
};

/// The tables that this CPU can run, the portable one first, the fastest last.
const std::vector<const Kernels*>& available();

/// The table in use: the last of available(), until use() changes it.
const Kernels& active();

/// Makes `name` the table in use; false if this CPU or this build has none of that name.
bool use(const std::string& name);

}  // namespace bitconv
