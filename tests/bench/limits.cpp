// What a processor reaches with nothing else to do: products of int8 in registers, and reading memory.
// DOT names the header of an instruction set's vectors.
#define BITCONV_ISA limits
#include DOT
#include "unrolled.hpp"

#include <chrono>
#include <thread>

namespace {

using bitconv::limits::Dot;
using bitconv::limits::unrolled;

#ifdef BITCONV_I8MM
using Product = Dot::Sum;
constexpr size_t products = 2 * Dot::width;
Product multiply_add(Product sum, Dot::Bytes codes, Dot::Bytes x) { return Dot::multiply_matrices(sum, codes, x); }
#else
using Product = Dot::Partial;
constexpr size_t products = Dot::width;
Product multiply_add(Product sum, Dot::Bytes codes, Dot::Bytes x) { return Dot::multiply_add(sum, codes, x); }
#endif

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

/// Multiplications with additions a second, of one core: codes in registers, activations in the first cache.
extern "C" double multiply_adds(double seconds) {
    constexpr size_t sums = 8, rounds = 1 << 20;
    alignas(64) static uint8_t activations[sums * Dot::width];
    alignas(64) static uint8_t codes[Dot::width] = {1, 2};
    const Dot::Bytes code = Dot::load(codes);
    Product partials[sums];
    unrolled<sums>([&](auto i) { partials[i] = Dot::zero(); });
    const double start = now();
    double done = 0;
    do {
        for (size_t round = 0; round < rounds; ++round) {
            __asm__ volatile("" ::"r"(activations) : "memory");  // which may have changed
            unrolled<sums>([&](auto i) {
                partials[i] = multiply_add(partials[i], code, Dot::load(activations + i * Dot::width));
            });
        }
        done += static_cast<double>(rounds * sums * products);
    } while (now() - start < seconds);
    const double rate = done / (now() - start);
    Dot::Sum all = Dot::sum_zero();
    unrolled<sums>([&](auto i) { all = Dot::widen(all, partials[i]); });
    volatile int32_t used = Dot::total(all);
    (void)used;
    return rate;
}

/// Bytes a second that so many threads read of n bytes.
extern "C" double reading(const uint64_t* data, size_t n, size_t threads) {
    const size_t share = n / sizeof *data / threads;
    std::vector<std::thread> readers;
    const double start = now();
    for (size_t t = 0; t < threads; ++t) {
        readers.emplace_back([=] {
            uint64_t sum = 0;
            for (size_t i = t * share; i < (t + 1) * share; ++i) sum += data[i];
            volatile uint64_t used = sum;
            (void)used;
        });
    }
    for (std::thread& reader : readers) reader.join();
    return static_cast<double>(n) / (now() - start);
}
