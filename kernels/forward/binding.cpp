// The classes of a forward pass: they check every size, and keep the arrays alive that they read from.
#include "../arrays.hpp"
#include "pass.hpp"

#include <cmath>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

namespace bitconv {
namespace {

using Row = Array<const float, nb::ndim<1>>;
using OptionalRow = std::optional<Row>;
using Rows = Array<float, nb::ndim<2>>;
using Angles = Array<const float, nb::ndim<2>>;
using Tokens = Array<const int64_t, nb::ndim<1>>;

struct OperandObject {
    OperandPtr operand;
};

struct MatrixObject {
    MatrixPtr matrix;
};

const float* data_of(const OptionalRow& row, const char* what, size_t size) {
    if (!row) return nullptr;
    require_size(what, row->size(), size);
    return row->data();
}

void require_columns(size_t cols) { require(cols > 0 && cols < size_t{1} << 23, "the number of columns is 0 or too large"); }

void define_operand(nb::module_& m) {
    nb::class_<OperandObject>(m, "Operand", "A packed ternary matrix [rows, cols], multiplied with int8 vectors.")
        .def_static("rows", [](const std::string& name, const Bytes& packed, size_t rows, size_t cols) {
            const RowLayout& layout = row_layout(name);
            require(layout.multiply, name + " is only read");
            require_columns(cols);
            require_rows(layout, rows, cols, packed.size());
            return OperandObject{row_operand(layout, packed.data(), rows, cols)};
        }, "layout"_a, "packed"_a.noconvert(), "rows"_a, "cols"_a, nb::keep_alive<0, 2>())
        .def_static("tl1", [](const Bytes& packed, size_t rows, size_t cols, size_t bm, size_t bk, size_t bmm) {
            require_columns(cols);
            return OperandObject{tl1_operand(packed.data(), rows, cols, tl1_tiles(rows, cols, packed.size(), bm, bk, bmm))};
        }, "packed"_a.noconvert(), "rows"_a, "cols"_a, "bm"_a, "bk"_a, "bmm"_a, nb::keep_alive<0, 1>())
        .def_static("tl2", [](const Bytes& values, const Bytes& signs, const Bytes& pairs, size_t rows, size_t cols,
                              size_t bm, size_t bk) {
            require_columns(cols);
            const Tiles tiles = tl2_tiles(rows, cols, bm, bk, values, signs, pairs);
            return OperandObject{tl2_operand({values.data(), signs.data(), pairs.data()}, rows, cols, tiles)};
        }, "values"_a.noconvert(), "signs"_a.noconvert(), "pairs"_a.noconvert(), "rows"_a, "cols"_a, "bm"_a, "bk"_a,
           nb::keep_alive<0, 1>(), nb::keep_alive<0, 2>(), nb::keep_alive<0, 3>())
        .def_static("trits", [](const Trits& trits) {
            require_columns(trits.shape(1));
            return OperandObject{plain_operand(trits.data(), trits.shape(0), trits.shape(1))};
        }, "trits"_a.noconvert(), nb::keep_alive<0, 1>());
}

void define_matrix(nb::module_& m) {
    nb::class_<MatrixObject>(m, "Matrix", "A matrix [rows, cols], multiplied with float32 vectors.")
        .def_static("ternary", [](const std::vector<const OperandObject*>& objects, const Scales& scales, bool rounding) {
            require(!objects.empty(), "there are no operands");
            std::vector<OperandPtr> operands;
            for (const OperandObject* object : objects) {
                operands.push_back(object->operand);
                require(object->operand->rows == operands[0]->rows && object->operand->cols == operands[0]->cols,
                        "the shapes of the operands differ");
            }
            const bool one = scales.size() == 1;
            if (!one) require_size("scales", scales.size(), times(operands[0]->rows, operands.size()));
            require_columns(times(operands[0]->cols, operands.size()));
            return MatrixObject{rounding ? rounding_matrix(std::move(operands), scales.data(), one)
                                         : unrounding_matrix(std::move(operands), scales.data(), one)};
        }, "operands"_a, "scales"_a.noconvert(), "rounding"_a, nb::keep_alive<0, 1>(), nb::keep_alive<0, 2>(),
           R"(Of groups of columns side by side, operands of one shape.

scales: one, or [rows, groups]. rounding: vectors are rounded to int8; sums of groups are scaled and added in float64.)")
        .def_static("dense", [](const Bytes& bytes, const std::string& dtype, size_t rows, size_t cols) {
            require_columns(cols);
            if (dtype[0] == 'q') {
                const auto [quant, block, block_bytes] = quantized_type(dtype);
                require_multiple("the number of columns", cols, block);
                require_size("bytes", bytes.size(), times(rows, cols / block * block_bytes));
                return MatrixObject{quantized_matrix(bytes.data(), quant, block, block_bytes, rows, cols)};
            }
            const Float type = float_type(dtype);
            require_size("bytes", bytes.size(), times(times(rows, cols), float_bytes(type)));
            return MatrixObject{float_matrix(bytes.data(), type, rows, cols)};
        }, "bytes"_a.noconvert(), "dtype"_a, "rows"_a, "cols"_a, nb::keep_alive<0, 1>(),
           "Of floats, or of blocks as dequantize_blocks takes them.");
}

void define_layer(nb::module_& m) {
    nb::class_<Linear>(m, "Linear", "A projection: a matrix, a bias [rows], and a norm [cols] of its input.")
        .def("__init__", [](Linear* self, const MatrixObject& matrix, const OptionalRow& bias, const OptionalRow& norm) {
            new (self) Linear{matrix.matrix, data_of(bias, "bias", matrix.matrix->rows),
                              data_of(norm, "norm", matrix.matrix->cols)};
        }, "matrix"_a, "bias"_a.noconvert() = nb::none(), "norm"_a.noconvert() = nb::none(), nb::keep_alive<1, 2>(),
           nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>());

    nb::class_<Graph>(m, "Graph", R"(What the layers of a model have in common.

experts_used: of a mixture. clamp: the gate is at most this, and up between plus and minus it. neighbours: neighbouring
pairs of a head are rotated, not i with i + head_dim / 2. late_qk_norms: behind the rotation.)")
        .def("__init__", [](Graph* self, size_t hidden, size_t heads, size_t kv_heads, size_t head_dim, size_t experts_used,
                            float rms_eps, float residual_scale, float clamp, const std::string& activation,
                            bool neighbours, bool late_qk_norms) {
            require(kv_heads > 0 && heads > 0 && heads % kv_heads == 0, "heads is not a multiple of kv_heads");
            require(head_dim > 0 && head_dim % 2 == 0, "head_dim is not even");
            require(activation == "silu" || activation == "relu2", "activation is not silu or relu2");
            new (self) Graph{hidden, heads, kv_heads, head_dim, experts_used, rms_eps, residual_scale, clamp,
                             activation == "silu" ? Activation::silu : Activation::relu2, neighbours, late_qk_norms};
        }, nb::kw_only(), "hidden"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "experts_used"_a, "rms_eps"_a,
           "residual_scale"_a, "clamp"_a, "activation"_a, "neighbours"_a, "late_qk_norms"_a);

    using Networks = std::vector<std::tuple<const Linear*, const Linear*, const Linear*>>;
    nb::class_<Layer>(m, "Layer", R"(A layer.

networks: of gate, up and down; several are chosen from by `router`, a matrix [networks, hidden]. rotated: by their
positions. window: how many tokens the last of them sees, itself among them; 0 for all.)")
        .def("__init__", [](Layer* self, const Graph& graph, const Linear& q, const Linear& k, const Linear& v,
                            const Linear& output, const Networks& networks, const Row& attention_norm,
                            const Row& ffn_norm, const OptionalRow& q_norm, const OptionalRow& k_norm,
                            const OptionalRow& attention_sub_norm, const OptionalRow& ffn_sub_norm,
                            const MatrixObject* router, bool rotated, size_t window) {
            const size_t q_rows = times(graph.heads, graph.head_dim), kv_rows = times(graph.kv_heads, graph.head_dim);
            const auto fits = [](const Linear& linear, size_t rows, size_t cols) {
                require(linear.matrix->rows == rows && linear.matrix->cols == cols, "the shapes of a layer do not fit");
            };
            fits(q, q_rows, graph.hidden);
            fits(k, kv_rows, graph.hidden);
            fits(v, kv_rows, graph.hidden);
            fits(output, graph.hidden, q_rows);
            require(!networks.empty(), "there are no networks");
            const size_t ffn = std::get<0>(networks[0])->matrix->rows;
            Layer layer{};
            for (const auto& [gate, up, down] : networks) {
                fits(*gate, ffn, graph.hidden);
                fits(*up, ffn, graph.hidden);
                fits(*down, graph.hidden, ffn);
                layer.networks.push_back({*gate, *up, *down});
            }
            if (router) {
                require(router->matrix->rows == networks.size() && router->matrix->cols == graph.hidden &&
                            graph.networks_used > 0 && graph.networks_used <= networks.size(),
                        "the router does not fit");
                layer.router = router->matrix;
            }
            require_size("attention_norm", attention_norm.size(), graph.hidden);
            require_size("ffn_norm", ffn_norm.size(), graph.hidden);
            layer.attention_norm = attention_norm.data();
            layer.ffn_norm = ffn_norm.data();
            layer.q_norm = data_of(q_norm, "q_norm", graph.head_dim);
            layer.k_norm = data_of(k_norm, "k_norm", graph.head_dim);
            layer.attention_sub_norm = data_of(attention_sub_norm, "attention_sub_norm", q_rows);
            layer.ffn_sub_norm = data_of(ffn_sub_norm, "ffn_sub_norm", ffn);
            layer.q = q, layer.k = k, layer.v = v, layer.output = output;
            layer.rotated = rotated;
            layer.window = window;
            new (self) Layer(std::move(layer));
        }, "graph"_a, nb::kw_only(), "q"_a, "k"_a, "v"_a, "output"_a, "networks"_a, "attention_norm"_a.noconvert(),
           "ffn_norm"_a.noconvert(), "q_norm"_a.noconvert() = nb::none(), "k_norm"_a.noconvert() = nb::none(),
           "attention_sub_norm"_a.noconvert() = nb::none(), "ffn_sub_norm"_a.noconvert() = nb::none(),
           "router"_a = nb::none(), "rotated"_a = true, "window"_a = 0, nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(),
           nb::keep_alive<1, 5>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>(), nb::keep_alive<1, 8>(),
           nb::keep_alive<1, 9>(), nb::keep_alive<1, 10>(), nb::keep_alive<1, 11>(), nb::keep_alive<1, 12>(),
           nb::keep_alive<1, 13>(), nb::keep_alive<1, 14>());
}

void define_pass(nb::module_& m) {
    nb::class_<Pass>(m, "Pass", R"(Threads and memory of forward passes; one call at a time.

A result does not depend on the number of threads, nor on how many vectors are computed at once.)")
        .def(nb::init<size_t>(), "threads"_a)
        .def("layer", [](Pass& self, const Graph& graph, const Layer& layer, const Rows& x, const Angles& cos,
                         const Angles& sin, const OutScales& keys, const OutScales& values, size_t capacity, size_t used) {
            const size_t n = x.shape(0), dim = graph.head_dim;
            times(capacity + attention_block, dim + attention_block);
            require_size("a vector of x", x.shape(1), graph.hidden);
            require_size("cos", cos.size(), times(n, graph.head_dim / 2));
            require_size("sin", sin.size(), times(n, graph.head_dim / 2));
            require_size("keys", keys.size(), times(graph.kv_heads, KeysAndValues::keys_of_head(capacity, dim)));
            require_size("values", values.size(), times(graph.kv_heads, KeysAndValues::values_of_head(capacity, dim)));
            require(used <= capacity && n <= capacity - used, "the cache is full");
            self.layer(graph, layer, x.data(), n, cos.data(), sin.data(), {keys.data(), values.data(), capacity, used});
        }, "graph"_a, "layer"_a, "x"_a.noconvert(), "cos"_a.noconvert(), "sin"_a.noconvert(), "keys"_a.noconvert(),
           "values"_a.noconvert(), "capacity"_a, "used"_a, Release(),
           R"(Compute x [n, hidden] -> x, the tokens behind `used` others.

cos, sin: [n, head_dim / 2]. keys: [kv_heads, capacity / BLOCK, head_dim, BLOCK], values: [kv_heads, head_dim / BLOCK,
capacity, BLOCK], the quotients rounded up.)")
        .def("project", [](Pass& self, const Linear& linear, const FloatVectors& x, const OutFloatVectors& out,
                           const OptionalRow& norm, float rms_eps, float divisor) {
            require_size("a vector of x", x.shape(1), linear.matrix->cols);
            require_size("out", out.size(), times(x.shape(0), linear.matrix->rows));
            self.project(linear, x.data(), x.shape(0), data_of(norm, "norm", linear.matrix->cols), rms_eps, divisor,
                         out.data());
        }, "linear"_a, "x"_a.noconvert(), "out"_a.noconvert(), "norm"_a.noconvert() = nb::none(), "rms_eps"_a = 0.0f,
           "divisor"_a = 1.0f, Release(), "Write the products [n, rows] with x [n, cols], normalised and divided before.")
        .def("log_probabilities", [](Pass& self, const FloatVectors& logits, const Tokens& tokens,
                                     const Array<double, nb::ndim<1>>& out) {
            const size_t n = logits.shape(0), vocabulary = logits.shape(1);
            require_size("tokens", tokens.size(), n);
            require_size("out", out.size(), n);
            for (size_t i = 0; i < n; ++i) {
                require(tokens.data()[i] >= 0 && static_cast<size_t>(tokens.data()[i]) < vocabulary, "there is no such token");
            }
            self.log_probabilities(logits.data(), n, vocabulary, tokens.data(), out.data());
        }, "logits"_a.noconvert(), "tokens"_a.noconvert(), "out"_a.noconvert(), Release(),
           "Write the natural logarithm of the probability of each token, of logits [n, vocabulary].");
    m.attr("BLOCK") = attention_block;
}

}  // namespace

void define_forward(nb::module_& m) {
    define_operand(m);
    define_matrix(m);
    define_layer(m);
    define_pass(m);
}

}  // namespace bitconv
