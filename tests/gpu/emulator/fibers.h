// The threads of a block as fibers: each has a stack of its own, leaves it at a barrier, and returns to it when all
// threads have arrived.
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

#pragma GCC visibility push(hidden)  // each library that includes this has an emulator of its own

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

// Change from this stack to another one. The registers that a call must preserve, and the floating-point modes, are
// pushed on the stack that is left. Without noipa, the compiler would see that the body writes to no other registers,
// and callers would keep values in them across the call.
[[gnu::naked, gnu::noipa]] inline void change_stack(void** /*left*/, void* /*entered*/) {
    asm("push %rbp\n\tpush %rbx\n\tpush %r12\n\tpush %r13\n\tpush %r14\n\tpush %r15\n\t"
        "sub $8, %rsp\n\tstmxcsr (%rsp)\n\tfnstcw 4(%rsp)\n\t"
        "mov %rsp, (%rdi)\n\tmov %rsi, %rsp\n\t"
        "ldmxcsr (%rsp)\n\tfldcw 4(%rsp)\n\tadd $8, %rsp\n\t"
        "pop %r15\n\tpop %r14\n\tpop %r13\n\tpop %r12\n\tpop %rbx\n\tpop %rbp\n\t"
        "pop %rcx\n\tjmp *%rcx");  // the processor would mispredict a ret
}

// The content of a new stack: what change_stack pops when it is entered for the first time.
struct Frame {
    uint32_t mxcsr = 0x1f80;  // the default mode: a GPU does not have the mode of the host
    uint16_t x87 = 0x37f, unused = 0;
    void* registers[6] = {};
    void (*entry)();
    void* caller = nullptr;
};
static_assert(sizeof(Frame) == 72);  // the stack is aligned as it is after a call

struct Fiber {
    uint3 index;
    char* end = nullptr;  // the end of the fiber's stack, while it has one
    void* left;           // stack pointer when the fiber left its stack
};

// Sets of lanes, a bit for each. A lane that is alive but neither ready nor waiting (at a barrier of the warp) waits at
// the barrier of the block.
struct Warp {
    uint32_t alive, ready, waiting;
    alignas(16) char values[kWarp][16];  // values that shuffles exchange
};

struct Block {
    const std::function<void()>* kernel;
    Fiber fibers[kMaxThreads];
    Warp warps[kMaxThreads / kWarp];
    unsigned current;
    void* host;                 // stack pointer of the host, which a fiber returns to
    std::vector<char*> stacks;  // ends of the stacks that no fiber has
    unsigned stacks_made = 0;
};
inline Block& block = *new Block{};  // never deleted: lives as long as the process
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
        // Without a shift, the ends of all stacks would compete for the same lines of the cache.
        const size_t shift = block.stacks_made++ % 32 * 128;
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

// Number i of n in an order that changes with the turn: forwards or backwards, from a different start.
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

// Every launch has another order of blocks, warps and lanes, so that code which relies on an order fails.
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

// The value of another lane. All lanes that are alive must call this.
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
    warp.waiting |= bit_of_current();  // all lanes have read before the next shuffle overwrites the values
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

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
    return emulator::exchanged(mask, value, source);
}

inline unsigned long long atomicMin(unsigned long long* address, unsigned long long value) {
    const unsigned long long before = *address;
    if (value < before) *address = value;
    return before;
}

#pragma GCC visibility pop
