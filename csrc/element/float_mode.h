// The floating-point mode that fixes the bits: round to nearest, no traps; float32 flushes subnormals, float64 is
// full IEEE. The caller's mode is neither relied on nor changed: it returns when the object dies.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif !defined(__aarch64__)
#error "fusedstep sets the floating-point mode of x86-64 and AArch64 only"
#endif

namespace fusedstep {

class FloatMode {
public:
    FloatMode() : caller_(read()) {}
    ~FloatMode() { write(caller_); }
    FloatMode(const FloatMode&) = delete;
    FloatMode& operator=(const FloatMode&) = delete;

#if defined(__x86_64__)
    using Word = unsigned;
    void ieee() { write(0x1f80); }            // every exception masked
    void flush() { write(0x1f80 | 0x8040); }  // FTZ and DAZ
private:
    static Word read() { return _mm_getcsr(); }
    static void write(Word word) { _mm_setcsr(word); }
#else
    using Word = uint64_t;
    void ieee() { write(0); }
    void flush() { write(uint64_t(1) << 24); }  // FZ
private:
    static Word read() {
        Word word;
        asm volatile("mrs %0, fpcr" : "=r"(word));
        return word;
    }
    static void write(Word word) { asm volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#endif

    Word caller_;
};

}  // namespace fusedstep
