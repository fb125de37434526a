// The intrinsics of AMX's tiles of int8: the compiler's, or where BITCONV_EMULATE is defined some of our own.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#ifdef BITCONV_EMULATE  // tests on a CPU without AMX
namespace bitconv::BITCONV_ISA {

struct EmulatedTiles {
    alignas(64) uint8_t bytes[8][16][64];

    void load(int tile, const void* from, size_t stride) {
        for (size_t row = 0; row < 16; ++row) {
            std::memcpy(bytes[tile][row], static_cast<const uint8_t*>(from) + row * stride, 64);
        }
    }
    void store(int tile, void* to, size_t stride) const {
        for (size_t row = 0; row < 16; ++row) {
            std::memcpy(static_cast<uint8_t*>(to) + row * stride, bytes[tile][row], 64);
        }
    }
    void multiply_add(int sums, int a, int b) {
        for (size_t row = 0; row < 16; ++row) {
            for (size_t column = 0; column < 16; ++column) {
                int32_t sum;
                std::memcpy(&sum, &bytes[sums][row][4 * column], sizeof sum);
                for (size_t k = 0; k < 64; ++k) {
                    sum += static_cast<int8_t>(bytes[a][row][k]) * bytes[b][k / 4][4 * column + k % 4];
                }
                std::memcpy(&bytes[sums][row][4 * column], &sum, sizeof sum);
            }
        }
    }
};

inline thread_local EmulatedTiles emulated;

}  // namespace bitconv::BITCONV_ISA

#undef _tile_zero  // where the compiler has them too
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_release()
#define _tile_zero(tile) std::memset(emulated.bytes[tile], 0, sizeof emulated.bytes[tile])
#define _tile_loadd(tile, from, stride) emulated.load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated.store(tile, to, stride)
#define _tile_dpbsud(sums, a, b) emulated.multiply_add(sums, a, b)
#endif
