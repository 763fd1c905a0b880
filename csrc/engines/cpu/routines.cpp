#include "engines/cpu/routines.h"

#include <math.h>
#include <string.h>

#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "element/float_mode.h"
#include "engines/cpu/x86.h"

#if defined(__x86_64__)
#include <sys/mman.h>
#endif

namespace fusedstep {
namespace {

std::atomic<bool> wanted{true};

// The vectors of an instruction set for which code is made.
const Vectors* vectors_of(std::string_view isa) {
    static constexpr Vectors avx2 = Vectors::kAvx2, avx512 = Vectors::kAvx512;
    return isa == "avx2" ? &avx2 : isa.starts_with("avx512") ? &avx512 : nullptr;
}

#if defined(__x86_64__)

// Put code into memory that is never writable and executable at once. Null where a system refuses such memory. The
// memory is kept: a step in another thread may be running the code.
Generated executable(const std::vector<uint8_t>& code) {
    void* const memory = mmap(nullptr, code.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    memcpy(memory, code.data(), code.size());
    if (mprotect(memory, code.size(), PROT_READ | PROT_EXEC) != 0) {
        munmap(memory, code.size());
        return nullptr;
    }
    return reinterpret_cast<Generated>(memory);
}

bool may_execute() {
    static const bool may = executable({0xF3, 0x0F, 0x1E, 0xFA, 0xC3}) != nullptr;  // endbr64; ret
    return may;
}

// Numbers of ordinary size and special ones, by turns that differ from array to array.
template <class T>
void fill(T* to, int64_t n, uint64_t seed) {
    constexpr double kSpecial[] = {0.0, -0.0,   1.0,     -1.0,  HUGE_VAL, -HUGE_VAL,
                                   NAN, 1e-310, -1e-310, 1e-40, -1e-40,   1e38};
    for (int64_t i = 0; i < n; ++i) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const auto bits = seed >> 33;
        to[i] = static_cast<T>(bits % 3 == 0 ? kSpecial[bits / 3 % 12] : static_cast<double>(bits) / (1u << 29) - 2);
    }
}

template <class T>
bool equal(const T* a, const T* b, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        if (memcmp(a + i, b + i, sizeof(T)) != 0 && !(a[i] != a[i] && b[i] != b[i])) return false;
    return true;
}

// Whether a routine gives the bits of the machine, on numbers of all kinds.
template <class T>
bool agrees(const Made& made, const Kernels& kernels, const Routine& routine, Ending ending) {
    constexpr int64_t n = 1024;
    static_assert(sizeof(T) * n % 64 == 0);
    std::vector<T> arrays[2][kRoles];
    Derived derived = {};
    fill(derived.float64, kMaxRuleScalars, 7);
    fill(derived.float32, kMaxRuleScalars, 7);
    derived.variant = ending == Ending::kParam ? kPlain : kDecayed;
    const Routine machine = {routine.codes, routine.state_count, routine.scalar_count, {}};
    FloatMode mode;
    sizeof(T) == sizeof(double) ? mode.ieee() : mode.flush();
    for (int which = 0; which < 2; ++which) {
        Slot slot;
        for (int role = 0; role < kStates + made.program.elements.state_count; ++role) {
            arrays[which][role].resize(n);
            fill(arrays[which][role].data(), n, 11 + role);
            slot.arrays[role] = arrays[which][role].data();
        }
        slot.size = n;
        const Type type = sizeof(T) == sizeof(double) ? kFloat64 : kFloat32;
        slot.types = {type, type, type};
        Task task{&slot, &derived, 1, 0, 0, 0, 0};
        task.routine = which == 0 ? &machine : &routine;
        kernels.made.measured(task, 0, n);
    }
    for (int role = 0; role < kRoles; ++role)
        if (!equal(arrays[0][role].data(), arrays[1][role].data(), static_cast<int64_t>(arrays[0][role].size())))
            return false;
    return true;
}

// Generate the function of a rule, and return it if it gives the bits of the machine.
Generated generate(const Made& made, const Kernels& kernels, bool is_double, Ending ending) {
    const std::vector<uint8_t> code = encode(made.program, ending, *vectors_of(kernels.isa), is_double);
    const Generated function = code.empty() ? nullptr : executable(code);
    if (!function) return nullptr;
    Routine routine = {made.codes, made.program.elements.state_count, made.program.numbers.scalar_count, {}};
    routine.generated[is_double][static_cast<int>(ending)] = function;
    const bool fine =
        is_double ? agrees<double>(made, kernels, routine, ending) : agrees<float>(made, kernels, routine, ending);
    return fine ? function : nullptr;
}

// The functions of all rules, by rule and vectors. Two instruction sets with the same vectors share them.
void find_functions(const Made& made, const Kernels& kernels, Routine& routine) {
    struct Functions {
        Generated of[2][2];
    };
    static std::mutex mutex;
    static auto& known = *new std::map<std::pair<const Made*, Vectors>, Functions>;
    const std::lock_guard lock(mutex);
    const auto [found, is_new] = known.try_emplace({&made, *vectors_of(kernels.isa)});
    if (is_new)
        for (bool is_double : {false, true})
            for (Ending ending : {Ending::kParam, Ending::kUpdate})
                found->second.of[is_double][static_cast<int>(ending)] = generate(made, kernels, is_double, ending);
    memcpy(routine.generated, found->second.of, sizeof(routine.generated));
}

#endif

}  // namespace

Routine routine_of(const Made& made, const Kernels& kernels) {
    Routine routine = {made.codes, made.program.elements.state_count, made.program.numbers.scalar_count, {}};
#if defined(__x86_64__)
    if (wanted.load(std::memory_order_relaxed) && !*why_no_code(kernels)) find_functions(made, kernels, routine);
#endif
    return routine;
}

std::vector<uint8_t> code_of(const Made& made, std::string_view isa, bool is_double, Ending ending) {
    const Vectors* const vectors = vectors_of(isa);
    if (!vectors) throw std::invalid_argument("isa is " + std::string(isa) + ", expected avx2 or avx512");
    return encode(made.program, ending, *vectors, is_double);
}

void use_code(bool is_wanted) {
    wanted.store(is_wanted, std::memory_order_relaxed);
}
bool uses_code() {
    return wanted.load(std::memory_order_relaxed);
}

const char* why_no_code(const Kernels& kernels) {
#if defined(__x86_64__)
    if (!vectors_of(kernels.isa)) return "code is made for avx2 and avx512 only";
    return may_execute() ? "" : "this system allows no memory that is made executable";
#else
    return "code is made for x86-64 only";
#endif
}

}  // namespace fusedstep
