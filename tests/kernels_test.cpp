// Compares the kernels of every instruction set that this machine can run with the portable ones, on random data,
// and every layout's unpack and matmul with what was packed. Needs no Python, so it also runs under an emulator.
// Prints "N passed, M failed"; the exit code is 1 if a comparison failed or an instruction set named as an
// argument is not available.
#include "kernels.hpp"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

using namespace bitconv;

namespace {

int passed = 0, failed = 0;
std::mt19937 random_bits(20240227);

void check(bool good, const std::string& what) {
    ++(good ? passed : failed);
    if (!good) std::printf("FAILED %s\n", what.c_str());
}

/// A vector whose data starts at an odd address, since kernels promise to take any.
template <class T>
struct Unaligned {
    std::vector<uint8_t> bytes;
    size_t size;
    explicit Unaligned(size_t n) : bytes(n * sizeof(T) + 1), size(n) {}
    T* data() { return reinterpret_cast<T*>(bytes.data() + (sizeof(T) == 1 ? 1 : 0)); }
    bool operator==(const Unaligned& other) const { return bytes == other.bytes; }
};
using Bytes = Unaligned<uint8_t>;
using Int8s = Unaligned<int8_t>;
using Int32s = std::vector<int32_t>;

Bytes random_bytes(size_t n) {
    Bytes bytes(n);
    for (size_t i = 0; i < n; ++i) bytes.data()[i] = static_cast<uint8_t>(random_bits());
    return bytes;
}

/// The first two rows are blocks of one value, for the largest sums.
Int8s random_trits(size_t rows, size_t cols) {
    Int8s trits(rows * cols);
    for (size_t i = 0; i < trits.size; ++i) trits.data()[i] = static_cast<int8_t>(random_bits() % 3) - 1;
    for (size_t k = 0; k < cols && rows > 0; ++k) trits.data()[k] = k < cols / 2 ? 0 : 1;
    for (size_t k = 0; k < cols && rows > 1; ++k) trits.data()[cols + k] = -1;
    return trits;
}

std::vector<float> random_scales(size_t n) {
    std::vector<float> scales(n);
    for (float& scale : scales) scale = std::ldexp(1.0f + static_cast<float>(random_bits() % 4096) / 4096, -3);
    return scales;
}

Int8s random_activations(size_t n, size_t cols) {
    Int8s x(n * cols);
    for (size_t i = 0; i < x.size; ++i) x.data()[i] = static_cast<int8_t>(random_bits());
    for (size_t k = 0; k < cols && n > 0; ++k) x.data()[k] = -128;
    for (size_t k = 0; k < cols && n > 1; ++k) x.data()[cols + k] = 127;
    return x;
}

size_t float_bytes(Float type) { return type == Float::f32 ? 4 : 2; }

/// Random bit patterns; with `plain`, no NaN or infinity in them.
Bytes random_floats(size_t n, Float type, bool plain) {
    const size_t size = float_bytes(type);
    Bytes floats = random_bytes(n * size);
    for (size_t i = 0; plain && i < n; ++i) floats.data()[i * size + size - 1] &= 0xbb;  // an exponent bit off
    return floats;
}

Int32s product_of(Int8s& trits, Int8s& x, size_t rows, size_t cols, size_t n) {
    Int32s out(n * rows);
    for (size_t v = 0; v < n; ++v) {
        for (size_t r = 0; r < rows; ++r) {
            int32_t sum = 0;
            for (size_t k = 0; k < cols; ++k) sum += trits.data()[r * cols + k] * x.data()[v * cols + k];
            out[v * rows + r] = sum;
        }
    }
    return out;
}

constexpr Float float_types[] = {Float::f32, Float::f16, Float::bf16};

void test_sources(const Kernels& kernels, const Kernels& portable) {
    const std::string isa = kernels.name;
    for (size_t n : {0, 1, 7, 63, 64, 65, 200, 1027}) {
        for (Float type : float_types) {
            for (bool plain : {true, false}) {
                Bytes x = random_floats(n, type, plain);
                const double a = kernels.abs_sum(x.data(), n, type), b = portable.abs_sum(x.data(), n, type);
                const bool same = std::memcmp(&a, &b, sizeof a) == 0;
                check(same || (!std::isfinite(a) && !std::isfinite(b)), isa + " abs_sum");
                for (float inverse_scale : {1.0f, 0.37f, 1e5f, 1e-5f, 3e38f}) {
                    Int8s t(n), expected(n);
                    kernels.ternarize(x.data(), n, type, inverse_scale, t.data());
                    portable.ternarize(x.data(), n, type, inverse_scale, expected.data());
                    check(t == expected, isa + " ternarize");
                    for (Float product : float_types) {
                        const uint32_t least[] = {portable.threshold(type, inverse_scale, product, false),
                                                  portable.threshold(type, inverse_scale, product, true)};
                        check(kernels.threshold(type, inverse_scale, product, false) == least[0] &&
                                  kernels.threshold(type, inverse_scale, product, true) == least[1], isa + " threshold");
                        for (uint32_t other : least) {
                            const auto others = kernels.ternarize_from(x.data(), n, type, least[1], other, t.data());
                            check(others == portable.ternarize_from(x.data(), n, type, least[1], other,
                                                                    expected.data()) &&
                                      t == expected, isa + " ternarize_from");
                        }
                        int64_t counts[2], expected_counts[2];
                        kernels.count_from(x.data(), n, type, least, 2, counts);
                        portable.count_from(x.data(), n, type, least, 2, expected_counts);
                        check(counts[0] == expected_counts[0] && counts[1] == expected_counts[1], isa + " count_from");
                    }
                }
                for (size_t group : {n, n % 3 == 0 ? n / 3 : n}) {
                    if (group == 0) continue;
                    Int8s t(n), expected(n);
                    std::vector<float> scales(n / group), expected_scales(n / group);
                    const int64_t at = kernels.ternarize_absmax(x.data(), n, type, group, t.data(), scales.data());
                    check(at == portable.ternarize_absmax(x.data(), n, type, group, expected.data(),
                                                          expected_scales.data()) &&
                              (at >= 0 || (t == expected && scales == expected_scales)), isa + " ternarize_absmax");
                }
                for (Float out_type : float_types) {
                    Bytes out(n * float_bytes(out_type)), expected(n * float_bytes(out_type));
                    const int64_t fault = kernels.convert_floats(x.data(), n, type, out.data(), out_type);
                    check(fault == portable.convert_floats(x.data(), n, type, expected.data(), out_type) &&
                              (fault >= 0 || out == expected), isa + " convert_floats");
                }
            }
            Int8s trits = random_trits(1, n);
            Bytes out(n * float_bytes(type)), expected(n * float_bytes(type));
            for (size_t group : {n, n % 3 == 0 ? n / 3 : n}) {
                if (group == 0) continue;
                const std::vector<float> scales = random_scales(n / group);
                kernels.dequantize(trits.data(), n, scales.data(), group, out.data(), type);
                portable.dequantize(trits.data(), n, scales.data(), group, expected.data(), type);
                check(out == expected, isa + " dequantize");
                for (bool damaged : {false, true}) {
                    if (damaged) out.data()[random_bits() % out.size] = static_cast<uint8_t>(random_bits());
                    std::vector<float> found(n / group), expected_scales(n / group);
                    const int64_t at = kernels.ternary_scales(out.data(), n, type, group, found.data());
                    check(at == portable.ternary_scales(out.data(), n, type, group, expected_scales.data()) &&
                              (at >= 0 || found == expected_scales) && (at < 0 || damaged),
                          isa + " ternary_scales");
                }
            }
        }
        for (int quarter = 0; quarter < 4; ++quarter) {
            Bytes packed = random_bytes(n);
            for (size_t i = 0; i < n; ++i) packed.data()[i] &= i == n / 2 ? 0xff : 0xaa;  // few codes 3, or none
            Int8s t(n), expected(n);
            check(kernels.unpack_hf(packed.data(), n, quarter, t.data()) ==
                          portable.unpack_hf(packed.data(), n, quarter, expected.data()) && t == expected,
                  isa + " unpack_hf");
        }
    }
}

constexpr size_t vector_counts[] = {0, 1, 2, 3, 4, 5, 8, 13, 16, 37};

/// Vectors ordered in two parts, and products with room between the vectors, which must stay as it is.
template <class Order, class Multiply>
Int32s product_in_parts(Int8s& x, size_t rows, size_t cols, size_t n, size_t bytes, Order order, Multiply multiply) {
    constexpr int32_t untouched = 77;
    const size_t first = n < vectors_at_once ? n : vectors_at_once, stride = rows + 3;
    Buffer ordered(n * bytes);
    order(x.data() + first * cols, n - first, ordered.data() + first * bytes);
    order(x.data(), first, ordered.data());
    Int32s wide(n * stride, untouched), out;
    multiply(ordered.data(), wide.data(), stride);
    for (size_t v = 0; v < n; ++v) {
        out.insert(out.end(), wide.begin() + static_cast<ptrdiff_t>(v * stride),
                   wide.begin() + static_cast<ptrdiff_t>(v * stride + rows));
        for (size_t r = rows; r < stride; ++r) check(wide[v * stride + r] == untouched, "what lies between vectors");
    }
    return out;
}

void test_row_layout(const std::string& isa, const RowLayout& layout, const RowLayout& truth) {
    const std::string what = isa + " " + layout.name;
    const size_t unit = layout.row_group > 1 ? 5 : layout.geometry.block;
    for (size_t rows : {size_t{0}, layout.row_group, 4 * layout.row_group, 7 * layout.row_group, 37 * layout.row_group}) {
        for (size_t blocks : {size_t{1}, size_t{2}, size_t{3}, size_t{5}, size_t{7}, size_t{33}, 16384 / unit + 3}) {
            const size_t cols = blocks * unit;
            const size_t size = layout.bytes(rows, cols), scale_count = layout.scales(rows, cols);
            Int8s trits = random_trits(rows, cols), unpacked(rows * cols), expected(rows * cols);
            Bytes packed = random_bytes(size);  // the read-only layouts take any bytes
            if (layout.pack) {
                Bytes other(size);
                const std::vector<float> given = random_scales(scale_count);
                layout.pack(trits.data(), given.data(), rows, cols, packed.data());
                truth.pack(trits.data(), given.data(), rows, cols, other.data());
                check(packed == other, what + " pack");
            }
            std::vector<float> scales(scale_count), expected_scales(scale_count);
            const auto unpack_both = [&](const std::string& how) {
                const int64_t invalid = layout.unpack(packed.data(), rows, cols, unpacked.data(), scales.data());
                const int64_t expected_invalid =
                    truth.unpack(packed.data(), rows, cols, expected.data(), expected_scales.data());
                check(invalid == expected_invalid, what + " unpack " + how + ": the index");
                if (invalid < 0) {
                    const bool same_scales =
                        scale_count == 0 || std::memcmp(scales.data(), expected_scales.data(), 4 * scale_count) == 0;
                    check(unpacked == expected && same_scales, what + " unpack " + how);
                }
                return invalid;
            };
            if (!layout.pack) {
                unpack_both("random bytes");
                continue;
            }
            check(unpack_both("packed") == -1 && unpacked == trits, what + " unpack what was packed");
            for (size_t n : vector_counts) {
                Int8s x = random_activations(n, cols);
                Int32s out(n * rows);
                layout.matmul(packed.data(), x.data(), out.data(), rows, cols, n);
                check(out == product_of(trits, x, rows, cols, n), what + " matmul " + std::to_string(cols));
                const auto order = [&](const int8_t* from, size_t count, uint8_t* to) {
                    layout.order(from, cols, count, to);
                };
                const auto multiply = [&](const uint8_t* ordered, int32_t* to, size_t stride) {
                    layout.multiply(packed.data(), rows, cols, ordered, n, to, stride);
                };
                check(product_in_parts(x, rows, cols, n, layout.ordered_bytes(cols), order, multiply) == out,
                      what + " order and multiply");
            }
            for (int i = 0; i < 20 && size > 0; ++i) {
                packed.data()[random_bits() % size] = static_cast<uint8_t>(random_bits());
                std::memset(unpacked.data(), 0, unpacked.size);
                std::memset(expected.data(), 0, expected.size);
                unpack_both("damaged");
            }
        }
    }
}

void test_tl1(const Kernels& kernels, const Kernels& portable) {
    const std::string what = std::string(kernels.name) + " tl1";
    constexpr Tiles all_tiles[] = {{32, 8, 32}, {64, 64, 32}, {64, 4, 64}, {128, 12, 64},
                                   {160, 520, 32}, {64, 260, 64}};
    for (const Tiles& tiles : all_tiles) {
        for (size_t blocks : {0, 1, 3}) {
            const size_t rows = 2 * tiles.bm, cols = blocks * tiles.bk, size = rows * cols / 4;
            Int8s trits = random_trits(rows, cols), unpacked(rows * cols), expected(rows * cols);
            Bytes packed(size), other(size);
            kernels.tl1.pack(trits.data(), rows, cols, tiles, packed.data());
            portable.tl1.pack(trits.data(), rows, cols, tiles, other.data());
            check(packed == other, what + " pack");
            check(kernels.tl1.unpack(packed.data(), rows, cols, tiles, unpacked.data()) == -1 && unpacked == trits,
                  what + " unpack what was packed");
            for (size_t n : vector_counts) {
                Int8s x = random_activations(n, cols);
                Int32s out(n * rows);
                kernels.tl1.matmul(packed.data(), x.data(), out.data(), rows, cols, n, tiles);
                check(out == product_of(trits, x, rows, cols, n), what + " matmul");
                const auto order = [&](const int8_t* from, size_t count, uint8_t* to) {
                    kernels.tl1.order(from, cols, count, tiles, to);
                };
                const auto multiply = [&](const uint8_t* ordered, int32_t* to, size_t stride) {
                    kernels.tl1.multiply(packed.data(), rows, cols, tiles, ordered, n, to, stride);
                };
                check(product_in_parts(x, rows, cols, n, kernels.tl1.ordered_bytes(cols), order, multiply) == out,
                      what + " order and multiply");
                std::fill(out.begin(), out.end(), 77);
                portable.tl1.matmul(packed.data(), x.data(), out.data(), rows, cols, n, tiles);
                check(out == product_of(trits, x, rows, cols, n), "portable tl1 matmul");
            }
            for (int i = 0; i < 20 && size > 0; ++i) {
                packed.data()[random_bits() % size] = static_cast<uint8_t>(random_bits());
                const int64_t invalid = kernels.tl1.unpack(packed.data(), rows, cols, tiles, unpacked.data());
                check(invalid == portable.tl1.unpack(packed.data(), rows, cols, tiles, expected.data()) &&
                          unpacked == expected, what + " unpack damaged");
            }
        }
    }
}

void test_tl2(const Kernels& kernels, const Kernels& portable) {
    const std::string what = std::string(kernels.name) + " tl2";
    struct Case {
        Tiles tiles;
        size_t cols;
    };
    constexpr Case cases[] = {{{32, 24, 32}, 24}, {{32, 96, 32}, 256}, {{64, 192, 32}, 32}, {{96, 192, 32}, 768},
                              {{64, 240, 32}, 304}, {{32, 408, 32}, 408}, {{96, 96, 32}, 224}};
    for (const auto& [tiles, cols] : cases) {
        const size_t rows = 2 * tiles.bm, two = cols % tiles.bk, three = cols - two;
        Int8s trits = random_trits(rows, cols), unpacked(rows * cols), expected(rows * cols);
        Bytes values(rows * three / 6), signs(rows * three / 24), pairs(rows * two / 4);
        Bytes values2(values.size), signs2(signs.size), pairs2(pairs.size);
        kernels.tl2.pack(trits.data(), rows, cols, tiles, {values.data(), signs.data(), pairs.data()});
        portable.tl2.pack(trits.data(), rows, cols, tiles, {values2.data(), signs2.data(), pairs2.data()});
        check(values == values2 && signs == signs2 && pairs == pairs2, what + " pack");
        const Tl2In packed{values.data(), signs.data(), pairs.data()};
        check(kernels.tl2.unpack(packed, rows, cols, tiles, unpacked.data()) == -1 && unpacked == trits,
              what + " unpack what was packed");
        for (size_t n : vector_counts) {
            Int8s x = random_activations(n, cols);
            Int32s out(n * rows);
            kernels.tl2.matmul(packed, x.data(), out.data(), rows, cols, n, tiles);
            check(out == product_of(trits, x, rows, cols, n), what + " matmul");
            const auto order = [&](const int8_t* from, size_t count, uint8_t* to) {
                kernels.tl2.order(from, cols, count, tiles, to);
            };
            const auto multiply = [&](const uint8_t* ordered, int32_t* to, size_t stride) {
                kernels.tl2.multiply(packed, rows, cols, tiles, ordered, n, to, stride);
            };
            check(product_in_parts(x, rows, cols, n, kernels.tl2.ordered_bytes(cols), order, multiply) == out,
                  what + " order and multiply");
            std::fill(out.begin(), out.end(), 77);
            portable.tl2.matmul(packed, x.data(), out.data(), rows, cols, n, tiles);
            check(out == product_of(trits, x, rows, cols, n), "portable tl2 matmul");
        }
        for (int i = 0; i < 60; ++i) {
            Bytes& part = i % 3 == 0 ? values : i % 3 == 1 ? signs : pairs;
            if (part.size == 0) continue;
            part.data()[random_bits() % part.size] = static_cast<uint8_t>(random_bits());
            const int64_t invalid = kernels.tl2.unpack(packed, rows, cols, tiles, unpacked.data());
            check(invalid == portable.tl2.unpack(packed, rows, cols, tiles, expected.data()) && unpacked == expected,
                  what + " unpack damaged");
        }
    }
}

void test_matmul(const Kernels& kernels) {
    for (size_t rows : {0, 1, 5}) {
        for (size_t cols : {0, 1, 31, 257}) {
            for (size_t n : vector_counts) {
                Int8s a = random_activations(rows, cols), x = random_activations(n, cols);
                Int32s out(n * rows);
                kernels.matmul(a.data(), x.data(), out.data(), rows, cols, n);
                check(out == product_of(a, x, rows, cols, n), std::string(kernels.name) + " matmul");
            }
        }
    }
}

void test_float_matmul(const Kernels& kernels, const Kernels& portable) {
    for (Float type : float_types) {
        for (size_t cols : {1, 16, 100, 2080}) {
            for (size_t n : vector_counts) {
                const size_t rows = 19;
                Bytes w = random_floats(rows * cols, type, true);
                std::vector<float> x(n * cols), out(n * rows), expected(n * rows);
                for (float& value : x) value = static_cast<float>(random_bits() % 2001) / 1000 - 1;
                kernels.float_matmul(w.data(), type, x.data(), out.data(), rows, rows, cols, n);
                portable.float_matmul(w.data(), type, x.data(), expected.data(), rows, rows, cols, n);
                check(n == 0 || std::memcmp(out.data(), expected.data(), n * rows * sizeof(float)) == 0,
                      std::string(kernels.name) + " float_matmul");
            }
        }
    }
}

/// Values of every magnitude that blocks can hold, among them ties, zeros, and blocks of one value.
std::vector<float> random_values(size_t n) {
    std::vector<float> values(n);
    for (size_t i = 0; i < n; ++i) {
        const float value = static_cast<float>(random_bits() % 2001) / 1000 - 1;
        const size_t kind = i / 512 % 6;
        values[i] = kind == 0   ? value
                    : kind == 1 ? std::round(value * 8)
                    : kind == 2 ? std::ldexp(value, static_cast<int>(random_bits() % 40) - 30)
                    : kind == 3 ? std::ldexp(value, -static_cast<int>(random_bits() % 150))
                    : kind == 4 ? 3.5f
                                : -1 - std::fabs(value);
    }
    return values;
}

void test_quantize(const Kernels& kernels, const Kernels& portable) {
    struct {
        Quant type;
        size_t block, bytes;
    } const types[] = {{Quant::q8_0, 32, 34}, {Quant::q6_k, 256, 210}, {Quant::q4_k, 256, 144}};
    for (const auto& [type, block, bytes] : types) {
        for (size_t blocks : {1, 3, 36}) {
            const size_t n = blocks * block;
            const std::vector<float> x = random_values(n);
            const uint8_t* raw = reinterpret_cast<const uint8_t*>(x.data());
            Bytes out(blocks * bytes), expected(blocks * bytes);
            check(kernels.quantize(raw, n, Float::f32, out.data(), type) == -1 &&
                      portable.quantize(raw, n, Float::f32, expected.data(), type) == -1 && out == expected,
                  std::string(kernels.name) + " quantize");
            std::vector<float> back(n), expected_back(n);
            check(kernels.dequantize_blocks(out.data(), n, type, back.data()) == -1 &&
                      portable.dequantize_blocks(out.data(), n, type, expected_back.data()) == -1 &&
                      std::memcmp(back.data(), expected_back.data(), n * sizeof(float)) == 0,
                  std::string(kernels.name) + " dequantize_blocks");
        }
    }
}

std::vector<float> random_floats32(size_t n, float size) {
    std::vector<float> values(n);
    for (float& value : values) value = (static_cast<float>(random_bits() % 20001) / 10000 - 1) * size;
    return values;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// What a layer computes beside its products, of both tables: run(steps) returns bits.
template <class Run>
void test_step(const Kernels& kernels, const Kernels& portable, const std::string& name, Run run) {
    check(same(run(kernels.steps), run(portable.steps)), std::string(kernels.name) + " " + name);
}

void test_steps(const Kernels& kernels, const Kernels& portable) {
    using Floats = std::vector<float>;
    for (size_t n : {2, 15, 16, 17, 128, 1000}) {
        for (float size : {0.0f, 1e-7f, 1.0f, 100.0f}) {
            const Floats x = random_floats32(n, size), y = random_floats32(n, 3.0f);
            test_step(kernels, portable, "norm", [&](const Steps& steps) {
                Floats out(n);
                steps.norm(x.data(), y.data(), n, 1e-5f, out.data());
                return out;
            });
            test_step(kernels, portable, "round_activations", [&](const Steps& steps) {
                std::vector<int8_t> codes(n);
                Floats out{steps.round_activations(x.data(), n, codes.data())};
                for (int8_t code : codes) out.push_back(code);
                return out;
            });
            for (bool neighbours : {false, true}) {
                test_step(kernels, portable, "rotate", [&](const Steps& steps) {
                    Floats head(x.begin(), x.begin() + static_cast<ptrdiff_t>(n / 2 * 2));
                    steps.rotate(head.data(), head.size(), y.data(), y.data() + n / 2, neighbours);
                    return head;
                });
            }
            for (Activation activation : {Activation::silu, Activation::relu2}) {
                for (float limit : {INFINITY, 0.5f}) {
                    test_step(kernels, portable, "gate", [&](const Steps& steps) {
                        Floats out(n);
                        steps.gate(x.data(), y.data(), n, activation, limit, out.data());
                        return out;
                    });
                }
            }
            test_step(kernels, portable, "add_scaled", [&](const Steps& steps) {
                Floats out = y;
                steps.add_scaled(x.data(), n, 0.3f, out.data());
                return out;
            });
            test_step(kernels, portable, "soften", [&](const Steps& steps) {
                Floats out = x;
                out.push_back(steps.soften(out.data(), n / 3, n, 0.7f));
                return out;
            });
            test_step(kernels, portable, "log_probability", [&](const Steps& steps) {
                return std::vector<double>{steps.log_probability(x.data(), n, n / 2)};
            });
        }
        std::vector<int32_t> sums(n);
        for (int32_t& sum : sums) sum = static_cast<int32_t>(random_bits() % 200001) - 100000;
        const Floats scales = random_floats32(2 * n, 1.0f);
        for (size_t stride : {0, 1, 2}) {
            test_step(kernels, portable, "scale_sums", [&](const Steps& steps) {
                Floats out(n);
                steps.scale_sums(sums.data(), n, scales.data(), stride, 37.5f, out.data());
                return out;
            });
            test_step(kernels, portable, "add_group", [&](const Steps& steps) {
                std::vector<double> totals(n, 0.1);
                steps.add_group(sums.data(), n, scales.data(), stride, totals.data());
                return totals;
            });
        }
    }
    struct {
        size_t dims, capacity, first, end;
    } const views[] = {{16, 1, 0, 1}, {40, 33, 0, 33}, {128, 70, 5, 66}, {128, 200, 100, 101}, {64, 300, 3, 300}};
    for (const auto& [dims, capacity, first, end] : views) {
        const Floats keys = random_floats32(in_blocks(capacity) * dims, 1.0f);
        const Floats values = random_floats32(in_blocks(dims) * capacity, 1.0f);
        for (size_t count : {1, 3}) {
            const Floats queries = random_floats32(count * dims, 2.0f);
            test_step(kernels, portable, "attend", [&](const Steps& steps) {
                Floats scratch(attend_scratch(count, end)), out(count * dims);
                steps.attend(queries.data(), count, dims, keys.data(), values.data(), capacity, first, end, scratch.data(),
                             out.data());
                return out;
            });
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) check(use(argv[i]), std::string("instruction set ") + argv[i] + " is available");
    const Kernels& portable = *available().front();
    for (const Kernels* kernels : available()) {
        const int before = passed;
        test_sources(*kernels, portable);
        test_matmul(*kernels);
        test_float_matmul(*kernels, portable);
        test_quantize(*kernels, portable);
        test_steps(*kernels, portable);
        const RowLayout* truth = portable.layouts.begin();
        for (const RowLayout& layout : kernels->layouts) test_row_layout(kernels->name, layout, *truth++);
        test_tl1(*kernels, portable);
        test_tl2(*kernels, portable);
        std::printf("%s: %d comparisons passed\n", kernels->name, passed - before);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
