// The loop of every rule on a GPU, compiled once per kind of arrays (-DFUSEDSTEP_LOOP=float32, ...): a warp takes a
// tile of a tensor at a time, and each of its lanes 16 bytes of each array, where they are aligned alike.
#include <cuda_runtime.h>

#include <new>
#include <type_traits>

#include "element/philox.h"
#include "element/scalars.h"
#include "engines/cuda/device.h"
#include "engines/cuda/table.h"
#include "rules/all.h"
#include "storage/storage.h"

#define JOIN(a, b) a##b
#define UPDATES(loop) JOIN(updates_, loop)

namespace {

using namespace fusedstep;
using namespace fusedstep::cuda;

constexpr Loop kLoop = FUSEDSTEP_LOOP;
using T = std::conditional_t<kLoop == float64, double, float>;

template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
    T x[n];
};

// n elements of an array from the i-th on, which are aligned to be read at once. They are in global memory, which the
// compiler does not see of a pointer that comes from shared memory.
template <class T, int n>
INLINE_HOST_DEVICE Pack<T, n>& pack_at(const void* array, int i) {
    T* first = static_cast<T*>(const_cast<void*>(array)) + i;
#ifdef __CUDA_ARCH__
    __builtin_assume(__isGlobal(first));
#endif
    return *reinterpret_cast<Pack<T, n>*>(first);
}

// The random bits of two elements of an array, the first of which is even. Not inlined: it needs many registers, and is
// needed rarely.
[[maybe_unused]] __host__ __device__ __noinline__ uint32_t noise_word(uint64_t key, uint32_t role, int64_t i) {
    const int within = static_cast<int>(i % kNoiseTile);
    const uint64_t counter = static_cast<uint64_t>(i / kNoiseTile) * kCounters + within / 2 % kCounters;
    uint64_t x[4] = {counter, counter >> 32, role, 0};
    philox(x, key);
    const int which = within / (2 * kCounters);
    return static_cast<uint32_t>(which < 2 ? (which == 0 ? x[0] : x[1]) : (which == 2 ? x[2] : x[3]));
}

// Those of the elements [i, i + n).
template <int n>
INLINE_HOST_DEVICE void noise_of(uint64_t key, uint32_t role, int64_t i, uint32_t (&noise)[n]) {
    uint32_t word = 0;
#pragma unroll
    for (int j = 0; j < n; ++j) {
        const bool odd = (i + j) % 2;
        if (j == 0 || !odd) word = noise_word(key, role, i + j - odd);
        noise[j] = odd ? word >> 16 : word & 0xffff;
    }
}

// Arrays as a lane reads and writes them: the elements [i, i + n), at once. A type that is known when this is compiled
// leaves no branch behind.

template <int n>
INLINE_HOST_DEVICE void load(Type, const void* array, int i, double (&x)[n]) {
    const auto pack = pack_at<double, n>(array, i);
    for (int j = 0; j < n; ++j) x[j] = pack.x[j];
}

template <int n>
INLINE_HOST_DEVICE void load_halves(const void* array, int i, uint32_t (&h)[n]) {
    const auto pack = pack_at<uint16_t, n>(array, i);
    for (int j = 0; j < n; ++j) h[j] = pack.x[j];
}

[[maybe_unused]] INLINE_HOST_DEVICE float widened(Type type, uint32_t h) {
    return type == kBFloat16 ? BFloat16::widened(h) : Float16::widened(h);
}
[[maybe_unused]] INLINE_HOST_DEVICE uint32_t nearest(Type type, float x) {
    return type == kBFloat16 ? BFloat16::nearest(x) : Float16::nearest(x);
}
[[maybe_unused]] INLINE_HOST_DEVICE uint32_t by_chance(Type type, float x, uint32_t noise) {
    return type == kBFloat16 ? BFloat16::by_chance(x, noise) : Float16::by_chance(x, noise);
}

template <int n>
INLINE_HOST_DEVICE void load(Type type, const void* array, int i, float (&x)[n]) {
    if (type == kFloat32) {
        const auto pack = pack_at<float, n>(array, i);
        for (int j = 0; j < n; ++j) x[j] = pack.x[j];
    } else {
        uint32_t h[n];
        load_halves(array, i, h);
        for (int j = 0; j < n; ++j) x[j] = widened(type, h[j]);
    }
}

template <class T, int n, class X>
INLINE_HOST_DEVICE void put(void* array, int i, const X (&x)[n]) {
    Pack<T, n> pack;
    for (int j = 0; j < n; ++j) pack.x[j] = static_cast<T>(x[j]);
    pack_at<T, n>(array, i) = pack;
}

// How what is stored is rounded: by chance, with a key for the random bits and the number of the element, or to
// nearest.
struct Rounding {
    bool stochastic;
    uint64_t key;
    uint32_t role;
    int64_t element;
};

template <int n>
INLINE_HOST_DEVICE void store(Type, void* array, int i, const double (&x)[n], Rounding) {
    put<double>(array, i, x);
}

template <int n>
INLINE_HOST_DEVICE void store(Type type, void* array, int i, const float (&x)[n], Rounding rounding) {
    if (type == kFloat32) return put<float>(array, i, x);
    uint32_t h[n];
    if (rounding.stochastic) {
        uint32_t noise[n];
        noise_of(rounding.key, rounding.role, rounding.element, noise);
        for (int j = 0; j < n; ++j) h[j] = by_chance(type, x[j], noise[j]);
    } else {
        for (int j = 0; j < n; ++j) h[j] = nearest(type, x[j]);
    }
    put<uint16_t>(array, i, h);
}

// A parameter and its master: the master, but the parameter where somebody has changed it since.
template <int n>
INLINE_HOST_DEVICE void load_with_master(const Types& types, const void* param, const void* master, int i,
                                         float (&x)[n]) {
    uint32_t h[n];
    load_halves(param, i, h);
    if (types.master == kUInt16) {
        uint32_t low[n];
        load_halves(master, i, low);
        for (int j = 0; j < n; ++j) x[j] = Split::joined(h[j], low[j]);
    } else {
        load(kFloat32, master, i, x);
        for (int j = 0; j < n; ++j) x[j] = nearest(types.param, x[j]) == h[j] ? x[j] : widened(types.param, h[j]);
    }
}

template <int n>
INLINE_HOST_DEVICE void store_with_master(const Types& types, void* param, void* master, int i, const float (&x)[n]) {
    uint32_t h[n];
    if (types.master == kUInt16) {
        uint32_t low[n];
        for (int j = 0; j < n; ++j) h[j] = Split::high(x[j]), low[j] = Split::low(x[j]);
        put<uint16_t>(master, i, low);
    } else {
        for (int j = 0; j < n; ++j) h[j] = nearest(types.param, x[j]);
        put<float>(master, i, x);
    }
    put<uint16_t>(param, i, h);
}

template <int n>
INLINE_HOST_DEVICE void zero(Type type, void* array, int i) {
    const uint32_t zeros[n] = {};
    if constexpr (kLoop == float64)
        put<double>(array, i, zeros);
    else if (type == kFloat32)
        put<float>(array, i, zeros);
    else
        put<uint16_t>(array, i, zeros);
}

INLINE_HOST_DEVICE void* at(void* array, Type type, int64_t i) {
    return static_cast<char*>(array) + i * (type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2);
}

// A tile of a tensor, as its warp sees it; in shared memory, since there is too much of it for registers.
template <class Rule, Body kBody>
struct Tile {
    static constexpr int kStateCount = words(Rule::states);
    // Of doubles there is one where registers would run out.
    static constexpr int kVector = sizeof(T) == 8 && kStateCount + kBody > 2 ? 1 : 16 / sizeof(T);
    static constexpr int kRow = kWarp * kVector;  // elements
    static constexpr int kBatch = kLoop == float32 && kBody == kShortBody && kStateCount < 2 ? 2 : 1;
    static constexpr Variant kVariant = kBody == kFullBody ? kAveraged : kDecayed;

    const Scalars<Rule, T> k;
    const Types found;
    void *const param, *const grad, *const s0, *const s1, *const s2, *const average, *const master;
    const int64_t begin;
    int head, in_vectors, size;  // elements before the first vector; in vectors; altogether
    const bool averages, zeroes, stochastic;
    const uint64_t noise;

    INLINE_HOST_DEVICE Tile(const Tensor& tensor, const Gradient& gradient, const Prepared& prepared, int64_t first,
                            int n)
        : k(prepared.group, kLoop == float64 ? prepared.scale64 : prepared.scale32),
          found{tensor.param, gradient.type, tensor.state, tensor.master},
          param(at(tensor.arrays[kParam], found.param, first)),
          grad(at(gradient.data, found.grad, first)),
          s0(at(tensor.arrays[kStates], found.state, first)),
          s1(at(tensor.arrays[kStates + 1], found.state, first)),
          s2(at(tensor.arrays[kStates + 2], found.state, first)),
          average(at(tensor.arrays[kAverage], found.state, first)),
          master(at(tensor.arrays[kMaster], found.master, first)),
          begin(first),
          averages(kBody == kFullBody && prepared.group.variant == kAveraged),
          zeroes(prepared.group.zero_grad),
          stochastic(kLoop == generic && prepared.group.stochastic),
          noise(prepared.noise) {
        head = tensor.head == gradient.head ? tensor.head : kScattered;
        in_vectors = head >= 0 && head < n ? (n - head) / kVector * kVector : 0;
        if (in_vectors == 0) head = 0;
        size = n;
    }

    // Known when this is compiled, but for the generic loop.
    INLINE_HOST_DEVICE Types types() const {
        if constexpr (kLoop == float32) return {kFloat32, kFloat32, kFloat32};
        if constexpr (kLoop == float64) return {kFloat64, kFloat64, kFloat64};
        return found;
    }

    INLINE_HOST_DEVICE void compute(T& p, T g, T& a, T& b, T& c) const {
        if (kBody == kFullBody && k.variant <= kDecayed)
            apply<kDecayed>(p, g, a, b, c);
        else
            apply<kVariant>(p, g, a, b, c);
    }

    template <Variant kAs>
    INLINE_HOST_DEVICE void apply(T& p, T g, T& a, T& b, T& c) const {
        if constexpr (kStateCount == 0) p = k.template parameter<kAs>(p, g);
        if constexpr (kStateCount == 1) p = k.template parameter<kAs>(p, g, a);
        if constexpr (kStateCount == 2) p = k.template parameter<kAs>(p, g, a, b);
        if constexpr (kStateCount == 3) p = k.template parameter<kAs>(p, g, a, b, c);
    }

    INLINE_HOST_DEVICE Rounding rounding(uint32_t role, int i) const { return {stochastic, noise, role, begin + i}; }

    // Update n elements from i on, and as many at each of kBatch places that lie `stride` apart: all are read before
    // the first is written, so that memory has enough to do.
    template <int n, int kBatch>
    INLINE_HOST_DEVICE void update(int i, int stride) const {
        read_anew();
        const Types types = this->types();
        T p[kBatch][n], g[kBatch][n], a[kBatch][n], b[kBatch][n], c[kBatch][n];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const int at = i + u * stride;
            if constexpr (kLoop == generic) {
                if (types.master != kTypes)
                    load_with_master(types, param, master, at, p[u]);
                else
                    load(types.param, param, at, p[u]);
            } else {
                load(types.param, param, at, p[u]);
            }
            load(types.grad, grad, at, g[u]);
            if constexpr (kStateCount > 0) load(types.state, s0, at, a[u]);
            if constexpr (kStateCount > 1) load(types.state, s1, at, b[u]);
            if constexpr (kStateCount > 2) load(types.state, s2, at, c[u]);
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const int at = i + u * stride;
            read_anew();
#pragma unroll
            for (int j = 0; j < n; ++j) compute(p[u][j], g[u][j], a[u][j], b[u][j], c[u][j]);
            if constexpr (kStateCount > 0) store(types.state, s0, at, a[u], rounding(kStates, at));
            if constexpr (kStateCount > 1) store(types.state, s1, at, b[u], rounding(kStates + 1, at));
            if constexpr (kStateCount > 2) store(types.state, s2, at, c[u], rounding(kStates + 2, at));
            if constexpr (kLoop == generic) {
                if (types.master != kTypes)
                    store_with_master(types, param, master, at, p[u]);
                else
                    store(types.param, param, at, p[u], rounding(kParam, at));
            } else {
                store(types.param, param, at, p[u], rounding(kParam, at));
            }
            if (averages) {
                read_anew();
                T e[n];
                load(types.state, average, at, e);
                for (int j = 0; j < n; ++j) e[j] = Around::average(k.around, e[j], p[u][j]);
                store(types.state, average, at, e, rounding(kAverage, at));
            }
            if (zeroes) zero<n>(types.grad, grad, at);
        }
    }

    INLINE_HOST_DEVICE void run(int lane) const {
        int i = head + lane * kVector;
#pragma unroll 1
        for (; i + (kBatch - 1) * kRow < head + in_vectors; i += kBatch * kRow) update<kVector, kBatch>(i, kRow);
        if constexpr (kBatch > 1)
#pragma unroll 1
            for (; i < head + in_vectors; i += kRow) update<kVector, 1>(i, 0);
#pragma unroll 1
        for (int j = lane; j < size - in_vectors; j += kWarp) update<1, 1>(j < head ? j : j + in_vectors, 0);
    }
};

// Of a skipped step, only this remains to be done.
INLINE_HOST_DEVICE void zero_tile(const Gradient& gradient, int64_t begin, int n, int lane) {
    void* const grad = at(gradient.data, gradient.type, begin);
    for (int i = lane; i < n; i += kWarp) zero<1>(gradient.type, grad, i);
}

template <class Rule, Body kBody>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) update(const __grid_constant__ Table table) {
    using ThisTile = Tile<Rule, kBody>;
    constexpr int kWarps = kThreads / kWarp;
    struct alignas(16) Room {
        char bytes[sizeof(ThisTile)];
    };
    __shared__ Room rooms[kWarps];
    const Flush<T> mode;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll 1
    for (int32_t tile = blockIdx.x * kWarps + warp; tile < table.tiles; tile += gridDim.x * kWarps) {
        const int32_t i = table.owners[tile];
        const Gradient& gradient = table.gradients[i];
        if (gradient.place < 0 || gradient.loop != kLoop) continue;
        const Tensor& tensor = table.tensors[i];
        const Prepared& prepared = table.prepared[i];
        const int64_t begin = (tile - tensor.first_tile) * kTile, rest = tensor.size - begin;
        const int n = static_cast<int>(rest < kTile ? rest : kTile);
        if (!prepared.skipped) {
            __syncwarp();  // until every lane has left the tile before
            if (lane == 0) new (rooms[warp].bytes) ThisTile(tensor, gradient, prepared, begin, n);
            __syncwarp();
            reinterpret_cast<const ThisTile*>(rooms[warp].bytes)->run(lane);
        } else if (prepared.group.zero_grad) {
            zero_tile(gradient, begin, n, lane);
        }
    }
}

// What is generic decides everything as it goes; one loop is enough.
constexpr Body kLeastBody = kLoop == generic ? kFullBody : kShortBody;
#define BODIES(Rule) {{update<Rule, kLeastBody>, update<Rule, kFullBody>}},

}  // namespace

namespace fusedstep::cuda {

const Updates UPDATES(FUSEDSTEP_LOOP)[] = {FUSEDSTEP_RULES(BODIES) FUSEDSTEP_LIMITS(BODIES)};

}  // namespace fusedstep::cuda
