// Products of several vectors at a time, in loops that are unrolled.
#pragma once
#include "kernels.hpp"

#include <type_traits>
#include <utility>

namespace bitconv::BITCONV_ISA {

/// Calls visit(0) to visit(N - 1) with constants, so that arrays which they index stay in registers.
template <size_t N, class Visit, size_t... I>
inline void unrolled(Visit visit, std::index_sequence<I...>) {
    (visit(std::integral_constant<size_t, I>{}), ...);
}
template <size_t N, class Visit>
inline void unrolled(Visit visit) {
    unrolled<N>(visit, std::make_index_sequence<N>{});
}

/// Vectors whose sums fit the registers of every instruction set.
constexpr size_t tile_vectors = 4;
static_assert(vectors_at_once % tile_vectors == 0, "a part that is ordered alone has whole tiles");

/// Calls tile(N, v) for n vectors from v on, N at a time, then the rest with smaller N; v is the first of them.
template <size_t N = tile_vectors, class Tile>
void each_tile(size_t n, Tile tile, size_t v = 0) {
    for (; n - v >= N; v += N) tile(std::integral_constant<size_t, N>{}, v);
    if constexpr (N > 1) each_tile<N / 2>(n, tile, v);
}

}  // namespace bitconv::BITCONV_ISA
