// The threads of a block as fibers: each has a stack, which it leaves at a barrier and enters again behind it.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <functional>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__x86_64__) || !defined(__linux__) || !defined(__GNUC__) || defined(__clang__)
#error "the emulator is for g++ on x86-64 Linux"
#endif

#pragma GCC visibility push(hidden)  // a library with this inside shares it with no other

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;

    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulator {

constexpr unsigned kWarp = 32, kMaxThreads = 1024;

[[noreturn]] inline void give_up(const char* why) {
    fprintf(stderr, "CUDA emulator: block (%u, %u, %u), thread (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z,
            threadIdx.x, threadIdx.y, threadIdx.z, why);
    abort();
}

// Leave this stack, with the registers that a call preserves and the floating-point modes on it, for another. Without
// noipa, callers would learn which other registers the body seems to spare.
[[gnu::naked, gnu::noipa]] inline void change_stack(void** /*left*/, void* /*entered*/) {
    asm("push %rbp\n\tpush %rbx\n\tpush %r12\n\tpush %r13\n\tpush %r14\n\tpush %r15\n\t"
        "sub $8, %rsp\n\tstmxcsr (%rsp)\n\tfnstcw 4(%rsp)\n\t"
        "mov %rsp, (%rdi)\n\tmov %rsi, %rsp\n\t"
        "ldmxcsr (%rsp)\n\tfldcw 4(%rsp)\n\tadd $8, %rsp\n\t"
        "pop %r15\n\tpop %r14\n\tpop %r13\n\tpop %r12\n\tpop %rbx\n\tpop %rbp\n\t"
        "pop %rcx\n\tjmp *%rcx");  // a return would be predicted wrongly
}

// What change_stack finds on a stack that nobody has left yet.
struct Frame {
    uint32_t mxcsr = 0x1f80;  // not the host's mode, which a device does not know
    uint16_t x87 = 0x37f, unused = 0;
    void* registers[6] = {};
    void (*entry)();
    void* caller = nullptr;
};
static_assert(sizeof(Frame) == 72);  // so that the stack is aligned as after a call

struct Fiber {
    uint3 index;
    char* end = nullptr;  // of its stack, while it has one
    void* left;           // where its stack was left
};

// Lanes as bits. Those that are alive, neither ready nor waiting for the warp, wait for the block.
struct Warp {
    uint32_t alive, ready, waiting;
    alignas(16) char values[kWarp][16];  // what they tell each other
};

struct Block {
    const std::function<void()>* kernel;
    Fiber fibers[kMaxThreads];
    Warp warps[kMaxThreads / kWarp];
    unsigned current;
    void* host;                 // where the stack of the host was left
    std::vector<char*> stacks;  // the ends of those that no fiber has
    unsigned stacks_made = 0;
};
inline Block& block = *new Block{};  // alive as long as the process
inline unsigned launches = 0;

inline Warp& warp_of_current() {
    return block.warps[block.current / kWarp];
}
inline uint32_t bit_of_current() {
    return 1u << block.current % kWarp;
}

inline char* lend_stack() {
    constexpr size_t kBytes = 64 << 10, kGuard = 4096;
    if (block.stacks.empty()) {
        void* memory = mmap(nullptr, kGuard + kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE)) give_up("no memory for a stack");
        const size_t shift = block.stacks_made++ % 32 * 128;  // lest all ends compete for the same lines of the cache
        block.stacks.push_back(static_cast<char*>(memory) + kGuard + kBytes - shift);
    }
    char* end = block.stacks.back();
    block.stacks.pop_back();
    return end;
}

inline void suspend() {
    change_stack(&block.fibers[block.current].left, block.host);
}

inline void run_thread() noexcept {
    (*block.kernel)();
    warp_of_current().alive &= ~bit_of_current();
    suspend();
}

inline void resume(unsigned thread) {
    Fiber& fiber = block.fibers[thread];
    block.current = thread;
    threadIdx = fiber.index;
    if (!fiber.end) {
        fiber.end = lend_stack();
        fiber.left = new (fiber.end - sizeof(Frame)) Frame{.entry = run_thread};
    }
    change_stack(&block.host, fiber.left);
    if (warp_of_current().alive & bit_of_current()) return;
    block.stacks.push_back(std::exchange(fiber.end, nullptr));
}

// Who is number i of n: forwards and backwards by turns, and from another one on.
inline uint64_t in_turn(uint64_t i, uint64_t n, unsigned turn) {
    return ((turn % 2 ? n - 1 - i : i) + turn / 2) % n;
}

inline void run_warp(unsigned which, unsigned turn) {
    Warp& warp = block.warps[which];
    while (warp.ready) {
        for (unsigned i = 0; i < kWarp; ++i) {
            const unsigned lane = in_turn(i, kWarp, turn);
            if (!(warp.ready >> lane & 1)) continue;
            warp.ready &= ~(1u << lane);
            resume(which * kWarp + lane);
        }
        if (warp.waiting == warp.alive) warp.ready = std::exchange(warp.waiting, 0);
    }
}

inline void run_block(unsigned threads, unsigned turn) {
    const unsigned warps = (threads + kWarp - 1) / kWarp;
    for (unsigned w = 0; w < warps; ++w) {
        const unsigned lanes = threads - w * kWarp;
        block.warps[w].alive = block.warps[w].ready = lanes < kWarp ? (1u << lanes) - 1 : ~0u;
        block.warps[w].waiting = 0;
    }
    for (bool alive = true; alive;) {
        for (unsigned w = 0; w < warps; ++w) run_warp(in_turn(w, warps, turn), turn);
        alive = false;
        for (unsigned w = 0; w < warps; ++w) {
            Warp& warp = block.warps[w];
            if (warp.waiting) give_up("deadlock: some threads of a warp wait for the warp, others for the block");
            warp.ready = warp.alive;
            alive = alive || warp.alive;
        }
    }
}

// Every launch has another order of blocks, warps and lanes, lest one of them be relied on.
inline void run_grid(const std::function<void()>& kernel, dim3 grid, dim3 threads) {
    const unsigned turn = launches++, size = threads.x * threads.y * threads.z;
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    gridDim = grid;
    blockDim = threads;
    block.kernel = &kernel;
    for (unsigned i = 0; i < size; ++i)
        block.fibers[i].index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t which = in_turn(i, blocks, turn);
        blockIdx = {static_cast<unsigned>(which % grid.x), static_cast<unsigned>(which / grid.x % grid.y),
                    static_cast<unsigned>(which / grid.x / grid.y)};
        run_block(size, turn);
    }
}

// The value of another lane, where all lanes that are alive ask for one.
template <class T>
T exchanged(unsigned mask, const T& value, unsigned source) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16);
    if (mask != ~0u) give_up("a shuffle among some of the lanes is not emulated");
    Warp& warp = warp_of_current();
    memcpy(warp.values[block.current % kWarp], &value, sizeof(T));
    warp.waiting |= bit_of_current();
    suspend();
    if (!(warp.alive >> source & 1)) give_up("a shuffle reads from a thread that has returned");
    T found;
    memcpy(&found, warp.values[source], sizeof(T));
    warp.waiting |= bit_of_current();  // before the next one overwrites the values
    suspend();
    return found;
}

}  // namespace emulator

inline void __syncthreads() {
    emulator::suspend();
}

inline void __syncwarp(unsigned mask = ~0u) {
    if (mask != ~0u) emulator::give_up("a barrier for some of the lanes is not emulated");
    emulator::warp_of_current().waiting |= emulator::bit_of_current();
    emulator::suspend();
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = emulator::kWarp) {
    if (width != static_cast<int>(emulator::kWarp))
        emulator::give_up("a shuffle within parts of a warp is not emulated");
    const unsigned lane = emulator::block.current % emulator::kWarp;
    return emulator::exchanged(mask, value, lane + delta < emulator::kWarp ? lane + delta : lane);
}

inline unsigned long long atomicMin(unsigned long long* address, unsigned long long value) {
    const unsigned long long before = *address;
    if (value < before) *address = value;
    return before;
}

#pragma GCC visibility pop
