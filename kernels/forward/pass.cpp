#include "pass.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace bitconv {

namespace {

// Numbers of what is kept in the memory that threads share.
enum Shared : size_t { q_rows, k_rows, v_rows, mixed_rows, added_rows, gate_rows, up_rows, normed_rows, routed_rows,
                       expert_rows, inputs, bytes };
// Numbers of a thread's own, besides those that matrices use.
enum Own : size_t { rounded = 8, part, scores };

constexpr size_t task_bytes = 1 << 17;  // of weights, which stay close while vectors pass
constexpr size_t least_rows = 32;       // two tiles of AMX
constexpr size_t small = 1 << 18;       // products that one thread has done before another has noticed
constexpr size_t slice_bytes = 8 << 20; // of ordered vectors, which stay in the cache while weights pass

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/// How many rows a task takes: whole blocks of the layout, and several tasks for each thread.
size_t rows_of_task(const Matrix& matrix, size_t n, size_t threads) {
    if (matrix.rows * matrix.cols * n < small) return matrix.rows;
    const size_t share = matrix.rows / (4 * threads), close = task_bytes / std::max<size_t>(matrix.row_bytes, 1);
    return round_up(std::max(std::min(share, close), least_rows), std::max(matrix.row_multiple, least_rows));
}

/// Vectors as some matrices take them: normalised alike, rounded, and in the orders of their layouts.
struct Source {
    struct Ordered {
        const Operand* operand;
        size_t first_column, at;  // bytes of other orders of a vector before it
    };
    const float* norm;
    std::vector<Ordered> ordered;
    float* x = nullptr;
    float* divisors = nullptr;
};

/// The sources of some matrices. taken: by matrix, its source, and which of the orders. bytes: of a vector in all
/// orders.
struct Sources {
    std::vector<Source> all;
    std::vector<std::pair<size_t, std::vector<size_t>>> taken;
    size_t bytes = 0;

    void take(const Linear& linear) {
        const size_t s = place(all, [&](const Source& source) { return source.norm == linear.norm; });
        if (s == all.size()) all.push_back({linear.norm, {}});
        taken.push_back({s, {}});
        size_t column = 0;
        for (const OperandPtr& operand : linear.matrix->operands()) {
            std::vector<Source::Ordered>& ordered = all[s].ordered;
            const size_t i = place(ordered, [&](const Source::Ordered& one) {
                return one.first_column == column && one.operand->same_order(*operand);
            });
            if (i == ordered.size()) {
                ordered.push_back({operand.get(), column, bytes});
                bytes += round_up(operand->ordered_bytes(), 64);
            }
            taken.back().second.push_back(i);
            column += operand->cols;
        }
    }

private:
    template <class Items, class Fits>
    static size_t place(const Items& items, Fits fits) {
        return static_cast<size_t>(std::find_if(items.begin(), items.end(), fits) - items.begin());
    }
};

}  // namespace

void Pass::products(const std::vector<Target>& targets, size_t n, float rms_eps, const Input& input) {
    const size_t cols = targets[0].linear->matrix->cols;
    Sources sources;
    for (const Target& target : targets) sources.take(*target.linear);
    const size_t close = std::max<size_t>(slice_bytes / std::max<size_t>(sources.bytes, 1), 1);
    const size_t slice = std::min(n, round_up(close, vectors_at_once));
    float* floats = shared_.get<float>(inputs, sources.all.size() * slice * (cols + 1));
    for (Source& source : sources.all) {
        source.x = floats;
        source.divisors = floats + slice * cols;
        floats += slice * (cols + 1);
    }
    uint8_t* ordered = shared_.get<uint8_t>(bytes, slice * sources.bytes);

    for (size_t start = 0; start < n; start += slice) {
        const size_t count = std::min(slice, n - start);
        team_.run((count + vectors_at_once - 1) / vectors_at_once, [&](size_t task, size_t thread) {
            const size_t first = task * vectors_at_once, vectors = std::min(vectors_at_once, count - first);
            int8_t* codes = scratch_[thread].get<int8_t>(rounded, vectors * cols);
            for (const Source& source : sources.all) {
                for (size_t v = 0; v < vectors; ++v) {
                    float* x = source.x + (first + v) * cols;
                    input(start + first + v, x);
                    if (source.norm) kernels_.steps.norm(x, source.norm, cols, rms_eps, x);
                    if (source.ordered.empty()) continue;
                    source.divisors[first + v] = kernels_.steps.round_activations(x, cols, codes + v * cols);
                }
                for (const Source::Ordered& one : source.ordered) {
                    const size_t width = one.operand->cols;
                    const int8_t* columns = codes;
                    if (width != cols) {
                        int8_t* copy = scratch_[thread].get<int8_t>(part, vectors * width);
                        for (size_t v = 0; v < vectors; ++v) {
                            std::memcpy(copy + v * width, codes + v * cols + one.first_column, width);
                        }
                        columns = copy;
                    }
                    uint8_t* to = ordered + slice * one.at + first * one.operand->ordered_bytes();
                    one.operand->order(columns, vectors, to);
                }
            }
        });

        struct Tasks {
            const Linear& linear;
            float* out;
            Vectors vectors;
            size_t rows, count;
        };
        std::vector<Tasks> tasks;
        size_t all = 0;
        for (size_t t = 0; t < targets.size(); ++t) {
            const Matrix& matrix = *targets[t].linear->matrix;
            const Source& source = sources.all[sources.taken[t].first];
            Vectors vectors{source.x, count, source.divisors, {}};
            for (size_t i : sources.taken[t].second) vectors.ordered.push_back(ordered + slice * source.ordered[i].at);
            const size_t rows = std::max<size_t>(rows_of_task(matrix, count, team_.threads()), 1);
            tasks.push_back({*targets[t].linear, targets[t].out + start * matrix.rows, std::move(vectors), rows,
                             (matrix.rows + rows - 1) / rows});
            all += tasks.back().count;
        }
        team_.run(all, [&](size_t i, size_t thread) {
            size_t t = 0;
            for (; i >= tasks[t].count; ++t) i -= tasks[t].count;
            const auto& [linear, out, vectors, rows, unused] = tasks[t];
            const size_t stride = linear.matrix->rows, first = i * rows, last = std::min(first + rows, stride);
            linear.matrix->multiply(first, last, vectors, out + first, stride, scratch_[thread]);
            if (!linear.bias) return;
            for (size_t v = 0; v < count; ++v) {
                for (size_t r = first; r < last; ++r) out[v * stride + r] += linear.bias[r];
            }
        });
    }
}

void Pass::layer(const Graph& graph, const Layer& layer, float* x, size_t n, const float* cos, const float* sin,
                 const KeysAndValues& cache) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t hidden = graph.hidden, dim = graph.head_dim;
    const size_t q_width = graph.heads * dim, kv_width = graph.kv_heads * dim;
    const Steps& steps = kernels_.steps;
    float* q = shared_.get<float>(q_rows, n * q_width);
    float* k = shared_.get<float>(k_rows, n * kv_width);
    float* v = shared_.get<float>(v_rows, n * kv_width);
    float* added = shared_.get<float>(added_rows, n * hidden);
    const auto add = [&](size_t t, size_t) {
        steps.add_scaled(added + t * hidden, hidden, graph.residual_scale, x + t * hidden);
    };

    products({{&layer.q, q}, {&layer.k, k}, {&layer.v, v}}, n, graph.rms_eps, [&](size_t t, float* out) {
        steps.norm(x + t * hidden, layer.attention_norm, hidden, graph.rms_eps, out);
    });
    const size_t keys_of_head = KeysAndValues::keys_of_head(cache.capacity, dim);
    const size_t values_of_head = KeysAndValues::values_of_head(cache.capacity, dim);
    team_.run(n, [&](size_t t, size_t) {
        const auto turn = [&](float* heads, size_t count, const float* norm) {
            for (float* head = heads; head < heads + count * dim; head += dim) {
                if (norm && !graph.late_qk_norms) steps.norm(head, norm, dim, graph.rms_eps, head);
                if (layer.rotated) steps.rotate(head, dim, cos + t * dim / 2, sin + t * dim / 2, graph.neighbours);
                if (norm && graph.late_qk_norms) steps.norm(head, norm, dim, graph.rms_eps, head);
            }
        };
        turn(q + t * q_width, graph.heads, layer.q_norm);
        turn(k + t * kv_width, graph.kv_heads, layer.k_norm);
        const size_t at = cache.used + t;
        for (size_t h = 0; h < graph.kv_heads; ++h) {
            const float *key = k + t * kv_width + h * dim, *value = v + t * kv_width + h * dim;
            float* keys = cache.keys + h * keys_of_head + at / attention_block * dim * attention_block + at % attention_block;
            float* values = cache.values + h * values_of_head + at * attention_block;
            for (size_t d = 0; d < dim; ++d) {
                keys[d * attention_block] = key[d];
                values[d / attention_block * cache.capacity * attention_block + d % attention_block] = value[d];
            }
        }
    });
    float* mixed = shared_.get<float>(mixed_rows, n * q_width);
    attend(graph, layer, q, n, cache, mixed);
    products({{&layer.output, added}}, n, graph.rms_eps, [&](size_t t, float* out) {
        const float* row = mixed + t * q_width;
        if (layer.attention_sub_norm) steps.norm(row, layer.attention_sub_norm, q_width, graph.rms_eps, out);
        else std::memcpy(out, row, q_width * sizeof *row);
    });
    team_.run(n, add);

    if (layer.router) {
        mixture(graph, layer, x, n, added);
    } else {
        network(graph, layer, layer.networks[0], n, [&](size_t t, float* out) {
            steps.norm(x + t * hidden, layer.ffn_norm, hidden, graph.rms_eps, out);
        }, added);
    }
    team_.run(n, add);
}

void Pass::attend(const Graph& graph, const Layer& layer, const float* q, size_t n, const KeysAndValues& cache,
                  float* out) {
    const size_t dim = graph.head_dim, keys = KeysAndValues::keys_of_head(cache.capacity, dim);
    const size_t values = KeysAndValues::values_of_head(cache.capacity, dim);
    const size_t shared = graph.heads / graph.kv_heads;  // heads that share keys and values
    const size_t together = n * graph.kv_heads < 2 * team_.threads() ? 1 : shared;
    const size_t parts = graph.heads / together;
    team_.run(n * parts, [&](size_t task, size_t thread) {
        const size_t t = task / parts, head = task % parts * together, kv = head / shared;
        const size_t end = cache.used + t + 1, first = layer.window && end > layer.window ? end - layer.window : 0;
        const size_t at = (t * graph.heads + head) * dim;
        float* scratch = scratch_[thread].get<float>(scores, attend_scratch(together, end));
        kernels_.steps.attend(q + at, together, dim, cache.keys + kv * keys, cache.values + kv * values, cache.capacity,
                              first, end, scratch, out + at);
    });
}

void Pass::network(const Graph& graph, const Layer& layer, const Network& network, size_t n, const Input& input,
                   float* out) {
    const size_t ffn = network.up.matrix->rows;
    float* gate = shared_.get<float>(gate_rows, n * ffn);
    float* up = shared_.get<float>(up_rows, n * ffn);
    products({{&network.gate, gate}, {&network.up, up}}, n, graph.rms_eps, input);
    products({{&network.down, out}}, n, graph.rms_eps, [&](size_t t, float* gated) {
        kernels_.steps.gate(gate + t * ffn, up + t * ffn, ffn, graph.activation, graph.limit, gated);
        if (layer.ffn_sub_norm) kernels_.steps.norm(gated, layer.ffn_sub_norm, ffn, graph.rms_eps, gated);
    });
}

/// The networks of the largest router logits, by the softmax of those. Added in the order of their numbers, so that a
/// token computes the same bits in every batch.
void Pass::mixture(const Graph& graph, const Layer& layer, const float* x, size_t n, float* out) {
    const size_t hidden = graph.hidden, experts = layer.router->rows, used = graph.networks_used;
    float* normed = shared_.get<float>(normed_rows, n * hidden);
    float* routed = shared_.get<float>(routed_rows, n * experts);
    float* one = shared_.get<float>(expert_rows, n * hidden);
    const Linear router{layer.router};
    products({{&router, routed}}, n, graph.rms_eps, [&](size_t t, float* row) {
        kernels_.steps.norm(x + t * hidden, layer.ffn_norm, hidden, graph.rms_eps, row);
        std::memcpy(normed + t * hidden, row, hidden * sizeof *row);
    });
    std::vector<std::vector<std::pair<size_t, float>>> tokens(experts);  // with their weights
    std::vector<size_t> order(experts);
    std::vector<float> weights(used);
    for (size_t t = 0; t < n; ++t) {
        const auto logit = [row = routed + t * experts](size_t e) { return std::isnan(row[e]) ? -INFINITY : row[e]; };
        std::iota(order.begin(), order.end(), size_t{0});
        std::stable_sort(order.begin(), order.end(), [=](size_t a, size_t b) { return logit(a) > logit(b); });
        for (size_t i = 0; i < used; ++i) weights[i] = routed[t * experts + order[i]];
        const float total = kernels_.steps.soften(weights.data(), 0, used, 1.0f);
        for (size_t i = 0; i < used; ++i) tokens[order[i]].push_back({t, weights[i] / total});
    }
    std::memset(out, 0, n * hidden * sizeof *out);
    for (size_t e = 0; e < experts; ++e) {
        const auto& routed_here = tokens[e];
        if (routed_here.empty()) continue;
        network(graph, layer, layer.networks[e], routed_here.size(), [&](size_t i, float* row) {
            std::memcpy(row, normed + routed_here[i].first * hidden, hidden * sizeof *row);
        }, one);
        team_.run(routed_here.size(), [&](size_t i, size_t) {
            const auto [t, weight] = routed_here[i];
            kernels_.steps.add_scaled(one + i * hidden, hidden, weight, out + t * hidden);
        });
    }
}

void Pass::project(const Linear& linear, const float* x, size_t n, const float* norm, float rms_eps, float divisor,
                   float* out) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t cols = linear.matrix->cols;
    products({{&linear, out}}, n, rms_eps, [&](size_t v, float* row) {
        const float* from = x + v * cols;
        if (norm) kernels_.steps.norm(from, norm, cols, rms_eps, row);
        else std::memcpy(row, from, cols * sizeof *row);
        for (size_t i = 0; divisor != 1.0f && i < cols; ++i) row[i] /= divisor;
    });
}

void Pass::log_probabilities(const float* logits, size_t n, size_t vocabulary, const int64_t* tokens, double* out) {
    const std::lock_guard<std::mutex> lock(mutex_);
    team_.run(n, [&](size_t v, size_t) {
        out[v] = kernels_.steps.log_probability(logits + v * vocabulary, vocabulary, static_cast<size_t>(tokens[v]));
    });
}

}  // namespace bitconv
