// A forward pass, layer after layer: what docs/architecture.md and bitconv.inference.forward describe, in their order.
#pragma once
#include "matrix.hpp"
#include "team.hpp"

#include <functional>
#include <mutex>

namespace bitconv {

/// A projection. bias [rows], and norm [cols] of its input: null where there is none.
struct Linear {
    MatrixPtr matrix;
    const float* bias = nullptr;
    const float* norm = nullptr;
};

struct Network {
    Linear gate, up, down;
};

/// Norms are null where there are none.
struct Layer {
    const float *attention_norm, *q_norm, *k_norm, *attention_sub_norm, *ffn_norm, *ffn_sub_norm;
    Linear q, k, v, output;
    MatrixPtr router;               ///< of a mixture of networks; else there is one
    std::vector<Network> networks;
    bool rotated;
    size_t window;                  ///< of how many tokens, the last one's own among them, it sees; 0 for all
};

/// What the layers of a model have in common.
struct Graph {
    size_t hidden, heads, kv_heads, head_dim, networks_used;
    float rms_eps, residual_scale, limit;
    Activation activation;
    bool neighbours;     ///< are rotated together
    bool late_qk_norms;  ///< behind the rotation
};

/// One layer's, of `used` tokens, with room for `capacity`: keys [kv_heads][capacity in blocks][head_dim][a block],
/// values [kv_heads][head_dim in blocks][capacity][a block], a block being attention_block of what it is of.
struct KeysAndValues {
    float *keys, *values;
    size_t capacity, used;

    static size_t keys_of_head(size_t capacity, size_t dims) { return in_blocks(capacity) * dims; }
    static size_t values_of_head(size_t capacity, size_t dims) { return in_blocks(dims) * capacity; }
};

/// Threads and memory. One call at a time.
class Pass {
public:
    explicit Pass(size_t threads) : team_(threads), scratch_(team_.threads()) {}

    /// x [n, hidden] -> x. cos, sin [n, head_dim / 2].
    void layer(const Graph& graph, const Layer& layer, float* x, size_t n, const float* cos, const float* sin,
               const KeysAndValues& cache);

    /// out [n, rows] from x [n, cols], normalised where `norm` is not null, and divided.
    void project(const Linear& linear, const float* x, size_t n, const float* norm, float rms_eps, float divisor,
                 float* out);

    /// out[v] = the natural logarithm of the probability of tokens[v], from logits [n, vocabulary].
    void log_probabilities(const float* logits, size_t n, size_t vocabulary, const int64_t* tokens, double* out);

private:
    struct Target {
        const Linear* linear;
        float* out;
    };
    /// Writes the float32 vector v.
    using Input = std::function<void(size_t v, float* out)>;

    void products(const std::vector<Target>& targets, size_t n, float rms_eps, const Input& input);
    void attend(const Graph& graph, const Layer& layer, const float* q, size_t n, const KeysAndValues& cache,
                float* out);
    void network(const Graph& graph, const Layer& layer, const Network& network, size_t n, const Input& input,
                 float* out);
    void mixture(const Graph& graph, const Layer& layer, const float* x, size_t n, float* out);

    const Kernels& kernels_ = active();
    Team team_;
    std::vector<Scratch> scratch_;  // of each thread
    Scratch shared_;
    std::mutex mutex_;
};

}  // namespace bitconv
