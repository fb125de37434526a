// Which instruction sets this CPU and its operating system support, and which table is in use.
#include "kernels.hpp"

#include <atomic>
#include <cstring>
#include <new>

#ifdef BITCONV_X86
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#ifdef BITCONV_ARM64
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace bitconv {

namespace scalar { extern const Kernels table; }
namespace avx2 { extern const Kernels table; }
namespace avx_vnni { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
namespace avx512_vnni { extern const Kernels table; }
namespace avx512_amx { extern const Kernels table; }
namespace neon { extern const Kernels table; }
namespace neon_dotprod { extern const Kernels table; }
namespace neon_i8mm { extern const Kernels table; }

namespace {

#ifdef BITCONV_X86

struct Registers {
    uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t part = 0) {
    Registers r{};
#ifdef _MSC_VER
    int out[4];
    __cpuidex(out, static_cast<int>(leaf), static_cast<int>(part));
    std::memcpy(&r, out, sizeof r);
#else
    __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
#endif
    return r;
}

/// The register state that the operating system saves (XCR0).
uint64_t saved_state() {
#ifdef _MSC_VER
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t{high} << 32 | low;
#endif
}

#ifndef BITCONV_EMULATE
/// Linux gives a process that asks for it the memory in which it saves tiles, since 5.16.
bool may_use_tiles() {
#ifdef __linux__
    constexpr long arch_req_xcomp_perm = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0;
#else
    return false;
#endif
}
#endif

void add_native(std::vector<const Kernels*>& tables) {
    const auto has = [](uint32_t bits, int bit) { return (bits >> bit & 1) != 0; };
    if (cpuid(0).a < 7) return;  // the last leaf; beyond it an answer means something else
    const Registers one = cpuid(1), seven = cpuid(7);
    if (!has(one.c, 27)) return;  // OSXSAVE: xgetbv may be asked
    const uint64_t state = saved_state();
    const bool fma = has(one.c, 12), f16c = has(one.c, 29);
    if ((state & 0x6) != 0x6 || !has(seven.b, 5) || !fma || !f16c) return;
    tables.push_back(&avx2::table);
#ifdef BITCONV_EMULATE
    [[maybe_unused]] const bool avx_vnni_usable = true;
    const bool avx512_usable = true, vnni = true;
    [[maybe_unused]] const bool amx = true;
#else
    // a of the leaf's first part is the number of its last one.
    [[maybe_unused]] const bool avx_vnni_usable = seven.a > 0 && has(cpuid(7, 1).a, 4);
    const bool f = has(seven.b, 16), dq = has(seven.b, 17), bw = has(seven.b, 30), vl = has(seven.b, 31);
    const bool avx512_usable = (state & 0xe6) == 0xe6 && f && dq && bw && vl;
    const bool vnni = has(seven.c, 11);
    // Tiles' configuration and data in XCR0, AMX-TILE and AMX-INT8.
    const bool tiles = (state & 0x60000) == 0x60000 && has(seven.d, 24) && has(seven.d, 25);
    [[maybe_unused]] const bool amx = tiles && may_use_tiles();
#endif
#ifdef BITCONV_AVX_VNNI
    if (avx_vnni_usable) tables.push_back(&avx_vnni::table);
#endif
    if (!avx512_usable) return;
    tables.push_back(&avx512::table);
    if (!vnni) return;
    tables.push_back(&avx512_vnni::table);
#ifdef BITCONV_AVX512_AMX
    if (amx) tables.push_back(&avx512_amx::table);
#endif
}

#elif defined(BITCONV_ARM64)

#if defined(__linux__)
bool has(unsigned long type, int bit, const char*) { return (getauxval(type) >> bit & 1) != 0; }
#elif defined(__APPLE__)
bool has(unsigned long, int, const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#else
bool has(unsigned long, int, const char*) { return false; }
#endif

void add_native(std::vector<const Kernels*>& tables) {
    constexpr unsigned long hwcap = 16, hwcap2 = 26;  // AT_HWCAP and AT_HWCAP2, which other systems do not name
    tables.push_back(&neon::table);
    if (!has(hwcap, 20, "hw.optional.arm.FEAT_DotProd")) return;  // HWCAP_ASIMDDP
    tables.push_back(&neon_dotprod::table);
#ifdef BITCONV_NEON_I8MM
    if (has(hwcap2, 13, "hw.optional.arm.FEAT_I8MM")) tables.push_back(&neon_i8mm::table);  // HWCAP2_I8MM
#endif
}

#else

void add_native(std::vector<const Kernels*>&) {}

#endif

std::atomic<const Kernels*>& in_use() {
    static std::atomic<const Kernels*> table{available().back()};
    return table;
}

}  // namespace

const std::vector<const Kernels*>& available() {
    static const std::vector<const Kernels*> tables = [] {
        std::vector<const Kernels*> found{&scalar::table};
        add_native(found);
        return found;
    }();
    return tables;
}

const Kernels& active() { return *in_use(); }

bool use(const std::string& name) {
    for (const Kernels* table : available()) {
        if (name == table->name) {
            in_use() = table;
            return true;
        }
    }
    return false;
}

Buffer::Buffer(size_t bytes) : data_(static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{64}))) {
    std::memset(data_, 0, bytes);
}

Buffer::~Buffer() { ::operator delete(data_, std::align_val_t{64}); }

}  // namespace bitconv
