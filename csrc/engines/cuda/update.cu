// The loop of every rule on a GPU, compiled once per kind of arrays (-DFUSEDSTEP_LOOP=float32, ...). A warp takes one
// tile of a tensor at a time, and each of its lanes 16 bytes of each array, where the arrays are aligned alike.
#include <cuda_runtime.h>

#include <new>
#include <type_traits>

#include "element/scalars.h"
#include "engines/cuda/compiler.h"
#include "engines/cuda/gather.h"
#include "engines/cuda/interpreter.h"
#include "engines/cuda/packs.h"
#include "engines/cuda/sums.h"
#include "rules/all.h"
#include "storage/all.h"

#define JOIN(a, b) a##b
#define UPDATES(loop) JOIN(updates_, loop)
#define AVERAGE(loop) JOIN(average_, loop)
#define MADE(loop) JOIN(made_, loop)

namespace {

using namespace fusedstep;
using namespace fusedstep::cuda;

constexpr Loop kLoop = FUSEDSTEP_LOOP;
using T = std::conditional_t<kLoop == float64, double, float>;

template <int n, class X>
INLINE_HOST_DEVICE void load_param(const Types& types, const void* param, const void* master, int i, X (&x)[n]) {
    if constexpr (kLoop == generic)
        if (types.master != kTypes) return load_with_master(types, param, master, i, x);
    load(types.param, param, i, x);
}

template <int n>
INLINE_HOST_DEVICE void zero(Type type, void* array, int i) {
    const uint32_t zeros[n] = {};
    if constexpr (kLoop == float64)
        put<double>(array, i, zeros);
    else if (type == kFloat32)
        put<float>(array, i, zeros);
    else
        put_words(type, array, i, zeros);
}

// What a loop keeps of a gradient beside its address, where it reads gradients of one layout only.
struct Nothing {
    INLINE_HOST_DEVICE Nothing(const Table&, const Gradient&, int64_t) {}
};

// A rule that is made at run time, as the compiler sees it, and what the program says further.
struct MadeRule {
    static constexpr char states[] = "a b c d";  // as many as there may be
    template <class T>
    struct Scalars {
        T all[kMaxRuleScalars];
    };
};
struct Program {
    int state_count;
};
// What a kernel for one rule of the list has in place of a program.
struct NoProgram {};
template <class Rule>
constexpr bool kIsMade = std::is_same_v<Rule, MadeRule>;

// A tile of a tensor, as its warp sees it. The object lies in shared memory, since it is too large for registers.
template <class Rule, Body kBody>
struct Tile {
    static constexpr int kStateCount = words(Rule::states);
    // Elements that a lane holds at once: 16 bytes of each array, or a single double where registers would run out.
    static constexpr int kVector = sizeof(T) == 8 && kStateCount + kBody > 2 ? 1 : 16 / sizeof(T);
    static constexpr int kRow = kWarp * kVector;  // elements that a warp holds at once
    static constexpr int kBatch = kLoop == float32 && kBody == kShortBody && kStateCount < 2 ? 2 : 1;
    static constexpr Variant kVariant = kBody == kFullBody ? kAveraged : kDecayed;
    // Whether gradients may be of any strides and type.
    static constexpr bool kGathers = kLoop == generic || (kLoop == float64 && kBody == kFullBody);
    static constexpr bool kMeasures = kBody == kFullBody && !kYardstick<Rule>;

    const Scalars<Rule, T> k;
    const std::conditional_t<kIsMade<Rule>, Program, NoProgram> program;
    const Types found;
    const std::conditional_t<kGathers, Gathered, Nothing> any_grad;
    void *const param, *const grad, *const average, *const master;
    void* states[kStateCount + 1];  // at least one: an array cannot be empty
    const int64_t element;          // number of the first element in the whole tensor
    int head, in_vectors, size;     // elements before the first vector, in vectors, and in all
    const bool averages, zeroes, stochastic;
    const uint64_t noise;

    template <class Program>
    INLINE_HOST_DEVICE Tile(const Table& table, const Tensor& tensor, const Gradient& gradient,
                            const Prepared& prepared, const Program& program, int64_t first, int n)
        : k(prepared.derived, kLoop == float64 ? prepared.scale64 : prepared.scale32),
          program(program),
          found{tensor.param, gradient.type, tensor.state, tensor.master},
          any_grad(table, gradient, first),
          param(at(tensor.arrays[kParam], types().param, first)),
          grad(at(gradient.data, types().grad, first)),
          average(at(tensor.arrays[kAverage], types().state, first)),
          master(at(tensor.arrays[kMaster], types().master, first)),
          element(tensor.origin + first),
          averages(kBody == kFullBody && prepared.derived.variant == kAveraged),
          zeroes(prepared.derived.zero_grad),
          stochastic(kLoop == generic && prepared.derived.stochastic),
          noise(prepared.noise) {
        for_states([&](int j) { states[j] = at(tensor.arrays[kStates + j], types().state, first); });
        head = gathers() || tensor.head == gradient.head ? tensor.head : kScattered;
        in_vectors = head >= 0 && head < n ? (n - head) / kVector * kVector : 0;
        if (kMeasures && table.measures_updates) in_vectors = 0;  // each lane has the elements of a lane of norm.h
        if (in_vectors == 0) head = 0;
        size = n;
    }

    // The types of the arrays: constants for the compiler, but in the generic loop.
    INLINE_HOST_DEVICE Types types() const {
        if constexpr (kLoop == float32) return {kFloat32, kFloat32, kFloat32};
        if constexpr (kLoop == float64) return {kFloat64, kFloat64, kFloat64};
        return found;
    }

    // Call f(j) for each state.
    template <class F>
    INLINE_HOST_DEVICE void for_states(F f) const {
        each_state<Rule>([&](int j) INLINE_LAMBDA {
            if constexpr (kIsMade<Rule>)
                if (j >= program.state_count) return;
            f(j);
        });
    }

    // Whether the elements of the gradient are found one by one.
    INLINE_HOST_DEVICE bool gathers() const {
        if constexpr (kGathers) return any_grad.count != kNeighbours;
        return false;
    }

    template <int n>
    INLINE_HOST_DEVICE void load_grad(int i, T (&g)[n]) const {
        if constexpr (kGathers)
            if (gathers()) {
#pragma unroll
                for (int j = 0; j < n; ++j) g[j] = gathered<T>(any_grad, i + j);
                return;
            }
        load(types().grad, grad, i, g);
    }

    template <int n>
    INLINE_HOST_DEVICE void zero_grad(int i) const {
        if constexpr (kGathers)
            if (gathers()) {
                for (int j = 0; j < n; ++j) zero(any_grad, i + j);
                return;
            }
        zero<n>(types().grad, grad, i);
    }

    // Compute the new parameters and states of n elements.
    template <int n, class Seen>
    INLINE_HOST_DEVICE void compute(T (&p)[n], const T (&g)[n], T (&s)[kStateCount + 1][n], Seen seen) const {
        if constexpr (kIsMade<Rule>) {
            if (kBody == kFullBody && k.variant <= kDecayed) return compute_made<kDecayed>(p, g, s, seen);
            compute_made<kVariant>(p, g, s, seen);
        } else {
#pragma unroll
            for (int i = 0; i < n; ++i) {
                const auto state = [&](int j) -> T& { return s[j][i]; };
                if (kBody == kFullBody && k.variant <= kDecayed)
                    p[i] = k.template parameter<kDecayed>(p[i], g[i], state, seen);
                else
                    p[i] = k.template parameter<kVariant>(p[i], g[i], state, seen);
            }
        }
    }
    // The same by the machine, whose registers have the numbers of operands.
    template <Variant kVariant, int n, class Seen>
    INLINE_HOST_DEVICE void compute_made(T (&p)[n], const T (&g)[n], T (&s)[kStateCount + 1][n], Seen seen) const {
        using interpreter::at;
#pragma unroll
        for (int i = 0; i < n; ++i) {
            at<T>(kParamOperand).x[i] = p[i];
            at<T>(kGradOperand).x[i] = Around::gradient<kVariant>(k.around, k.scale, p[i], g[i]);
        }
        for_states([&](int j) {
            for (int i = 0; i < n; ++i) at<T>(kFirstStateOperand + j).x[i] = s[j][i];
        });
        interpreter::run<n>(k.rule.all);
        for_states([&](int j) {
            for (int i = 0; i < n; ++i) s[j][i] = at<T>(kFirstStateOperand + j).x[i];
        });
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const T before = at<T>(kParamOperand).x[i], u = at<T>(kFirstStateOperand + program.state_count).x[i];
            const T all = Around::subtracted(k.around, before, u);
            seen(all);
            p[i] = Around::parameter<kVariant>(k.around, before, all);
        }
    }

    INLINE_HOST_DEVICE Rounding rounding(int role, int i) const {
        return {stochastic, noise, noise_array(role), element + i};
    }

    // Update n elements from i on, and n elements at each of kBatch - 1 further places `stride` apart. All are read
    // before the first is written, so that many reads are under way at once. seen(u) is called with what is subtracted
    // from a parameter.
    template <int n, int kBatch, class Seen = Unseen>
    INLINE_HOST_DEVICE void update(int i, int stride, Seen seen = {}) const {
        read_anew();
        T p[kBatch][n], g[kBatch][n], s[kBatch][kStateCount + 1][n];
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const int at = i + u * stride;
            const Types types = this->types();
            load_grad(at, g[u]);
            load_param(types, param, master, at, p[u]);
            for_states([&](int j) { load(types.state, states[j], at, s[u][j]); });
        }
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
            const int at = i + u * stride;
            read_anew();
            compute(p[u], g[u], s[u], seen);
            const Types types = this->types();
            for_states([&](int j) { store(types.state, states[j], at, s[u][j], rounding(kStates + j, at)); });
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
            if (zeroes) zero_grad<n>(at);
        }
    }

    // Update the tile, and return the sum of the squares of what a lane subtracts, where that is measured.
    INLINE_HOST_DEVICE double run(int lane) const {
        int i = head + lane * kVector;
#pragma unroll 1
        for (; i + (kBatch - 1) * kRow < head + in_vectors; i += kBatch * kRow) update<kVector, kBatch>(i, kRow);
        if constexpr (kBatch > 1)
#pragma unroll 1
            for (; i < head + in_vectors; i += kRow) update<kVector, 1>(i, 0);
        double sum = 0;
#pragma unroll 1
        for (int j = lane; j < size - in_vectors; j += kWarp)
            update<1, 1>(j < head ? j : j + in_vectors, 0, [&](T u) {
                const double x = u;
                if constexpr (kMeasures) sum = sum + x * x;
            });
        return sum;
    }
};

// Set the gradient of a tile to +0, which a step does even if it is skipped.
INLINE_HOST_DEVICE void zero_tile(const Table& table, const Gradient& gradient, int64_t begin, int n, int lane) {
    if (gradient.axis_count != kNeighbours) {
        const Gathered grad(table, gradient, begin);
        for (int i = lane; i < n; i += kWarp) zero(grad, i);
        return;
    }
    void* const grad = at(gradient.data, gradient.type, begin);
    for (int i = lane; i < n; i += kWarp) zero<1>(gradient.type, grad, i);
}

// Update all tiles of the loop, by blocks of so many threads.
template <class Rule, Body kBody, int kThreads, class Program>
__device__ inline void update_tiles(const Table& table, const Program& program) {
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
        if (gradient.order < 0 || gradient.loop != kLoop) continue;
        const Tensor& tensor = table.tensors[i];
        const Prepared& prepared = table.prepared[i];
        const int64_t begin = (tile - tensor.first_tile) * kTile, rest = tensor.size - begin;
        const int n = static_cast<int>(rest < kTile ? rest : kTile);
        if (!prepared.skipped) {
            __syncwarp();  // until every lane is done with the previous tile
            if (lane == 0) new (rooms[warp].bytes) ThisTile(table, tensor, gradient, prepared, program, begin, n);
            __syncwarp();
            const double squares = reinterpret_cast<const ThisTile*>(rooms[warp].bytes)->run(lane);
            if (ThisTile::kMeasures && table.measures_updates) {
                const double sum = fold(squares);
                double& place = tensor.size > kTile ? table.sums[tile] : own_squares(table)[i].sum;
                if (lane == 0) place = sum;
            }
        } else if (prepared.derived.zero_grad) {
            zero_tile(table, gradient, begin, n, lane);
        }
    }
}

template <class Rule, Body kBody>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) update(const __grid_constant__ Table table) {
    update_tiles<Rule, kBody, kThreads>(table, NoProgram());
}

template <Body kBody>
__global__ void __launch_bounds__(kMadeThreads, kLeastMadeBlocks)
    update_made(const __grid_constant__ Table table, const __grid_constant__ Interpreted rule) {
    for (int i = threadIdx.x; i < rule.count; i += kMadeThreads) interpreter::code()[i] = rule.instructions[i];
    __syncthreads();
    update_tiles<MadeRule, kBody, kMadeThreads>(table, Program{rule.state_count});
}

// Element by element: a tensor that gets no more gradients is rare. A parameter that no update has written may be
// subnormal, which counts as zero.
__global__ void __launch_bounds__(kThreads, kLeastBlocks) average(const __grid_constant__ Table table) {
    const Flush<T> mode;
    const int lane = threadIdx.x % kWarp, warps = gridDim.x * kThreads / kWarp;
#pragma unroll 1
    for (int32_t tile = (blockIdx.x * kThreads + threadIdx.x) / kWarp; tile < table.tiles; tile += warps) {
        const int32_t i = table.owners[tile];
        const Tensor& tensor = table.tensors[i];
        const Prepared& prepared = table.prepared[i];
        if (!prepared.averaged || table.gradients[i].loop != kLoop) continue;
        const Types types{tensor.param, kTypes, tensor.state, tensor.master};
        const int64_t begin = (tile - tensor.first_tile) * kTile, rest = tensor.size - begin;
        const int n = static_cast<int>(rest < kTile ? rest : kTile);
        void* const param = at(tensor.arrays[kParam], types.param, begin);
        void* const average = at(tensor.arrays[kAverage], types.state, begin);
        void* const master = at(tensor.arrays[kMaster], types.master, begin);
        const Around::Scalars<T>& k = Around::scalars<T>(prepared.derived);
#pragma unroll 1
        for (int j = lane; j < n; j += kWarp) {
            T p[1], e[1];
            load_param(types, param, master, j, p);
            if constexpr (kLoop != float64) p[0] = flushed(p[0]);
            load(types.state, average, j, e);
            e[0] = Around::average(k, e[0], p[0]);
            store(types.state, average, j, e,
                  Rounding{prepared.derived.stochastic, prepared.noise, noise_array(kAverage),
                           tensor.origin + begin + j});
        }
    }
}

// The generic loop looks at the options as it goes, so it has the full body only. A yardstick is run without options.
constexpr Body kLeastBody = kLoop == generic ? kFullBody : kShortBody;
template <class Rule>
constexpr Body kMostBody = kYardstick<Rule> ? kLeastBody : kFullBody;
#define BODIES(Rule) {{update<Rule, kLeastBody>, update<Rule, kMostBody<Rule>>}},

}  // namespace

namespace fusedstep::cuda {

const Update AVERAGE(FUSEDSTEP_LOOP) = average;
const UpdatesOfMade MADE(FUSEDSTEP_LOOP) = {{update_made<kLeastBody>, update_made<kFullBody>}};
const Updates UPDATES(FUSEDSTEP_LOOP)[] = {FUSEDSTEP_RULES(BODIES) FUSEDSTEP_LIMITS(BODIES)};

}  // namespace fusedstep::cuda
