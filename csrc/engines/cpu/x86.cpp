#include "engines/cpu/x86.h"

#include <algorithm>
#include <map>
#include <stdexcept>

namespace fusedstep {
namespace {

struct OutOfRegisters : std::exception {};

// General registers, by their numbers: addresses of arrays, table of scalars, and the place that the loop has come to.
constexpr int kIndex = 2, kTable = 6;                                 // rdx, rsi
constexpr int kAddresses[kFirstTemporary] = {0, 1, 8, 9, 10, 11, 7};  // rax rcx r8 r9 r10 r11 rdi

// Where an operand is: in a vector register, or in memory.
struct Place {
    bool in_memory = false;
    int number = 0;  // of the vector register, or of the general register with the address
    int offset = 0;  // from the address; of arrays the place of the loop is added in its stead
    bool is_array = false;
};
Place vector(int number) {
    return {false, number};
}

// The instructions, one function for each form.
class Writer {
public:
    Writer(Vectors vectors, bool is_double) : wide_(vectors == Vectors::kAvx512), double_(is_double) {}

    std::vector<uint8_t> bytes;

    void put(std::initializer_list<int> some) {
        for (int byte : some) bytes.push_back(static_cast<uint8_t>(byte));
    }
    // An instruction of floating-point vectors: destination, first source, second source, which may be in memory.
    void arithmetic(int opcode, int to, int a, const Place& b) { encode(1, double_, opcode, to, a, b); }
    void root(int to, const Place& x) { encode(1, double_, 0x51, to, 0, x); }
    void load(int to, const Place& from) { encode(1, double_, 0x10, to, 0, from); }
    void store(int from, const Place& to) { encode(1, double_, 0x11, from, 0, to); }
    // A comparison, into a mask: a vector register with AVX2, one of k1 to k7 with AVX-512.
    void compare(int predicate, int to, int a, const Place& b) {
        encode(1, double_, 0xC2, to, a, b);
        put({predicate});
    }
    // Where the mask holds `yes`, elsewhere `no`.
    void blend(int to, int no, const Place& yes, int mask) {
        if (wide_) return encode(2, true, 0x65, to, no, yes, mask);
        encode(3, true, double_ ? 0x4B : 0x4A, to, no, yes);
        put({mask << 4});
    }
    // Where the mask holds, the bits of `to` that are in `and_bits`, and those of `or_bits`; of AVX-512.
    void blend_bits(int to, int and_bits, const Place& or_bits, int mask) {
        encode(3, true, 0x25, to, and_bits, or_bits, mask);
        put({0xEA});
    }
    // An operation on masks: both, either, or the inverse of b.
    void masks(Op op, int to, int a, int b) {
        if (op == Op::kNot) return put({0xC5, 0xF8, 0x44, 0xC0 | to << 3 | b});
        put({0xC5, 0x80 | (~a & 15) << 3 | 4, op == Op::kBoth ? 0x41 : 0x45, 0xC0 | to << 3 | b});
    }

private:
    void encode(int map, bool prefix_66, int opcode, int to, int a, const Place& b, int mask = 0) {
        wide_ ? evex(map, prefix_66, opcode, to, a, b, mask) : vex(map, prefix_66, opcode, to, a, b);
        modrm(to, b);
    }
    void vex(int map, bool prefix_66, int opcode, int to, int a, const Place& b) {
        const int r = to < 8, x = 1, base = b.number < 8;
        put({0xC4, r << 7 | x << 6 | base << 5 | map, (~a & 15) << 3 | 1 << 2 | int(prefix_66), opcode});
    }
    void evex(int map, bool prefix_66, int opcode, int to, int a, const Place& b, int mask) {
        // Registers have five bits, whose upper ones are inverted. Of a register as second source, bit 4 stands in X.
        const int r = ~to >> 3 & 1, r2 = ~to >> 4 & 1, base = ~b.number >> 3 & 1;
        const int x = b.in_memory ? 1 : ~b.number >> 4 & 1;
        put({0x62, r << 7 | x << 6 | base << 5 | r2 << 4 | map,
             int(double_) << 7 | (~a & 15) << 3 | 1 << 2 | int(prefix_66), 2 << 5 | (~a >> 4 & 1) << 3 | mask, opcode});
    }
    void modrm(int to, const Place& b) {
        const int reg = (to & 7) << 3;
        if (!b.in_memory) return put({0xC0 | reg | (b.number & 7)});
        if (b.is_array) return put({reg | 4, kIndex << 3 | (b.number & 7)});  // [address + index]
        put({0x80 | reg | (b.number & 7)});
        for (int shift = 0; shift < 32; shift += 8) put({b.offset >> shift & 255});
    }

    const bool wide_, double_;
};

using Value = int;  // as operands number them

class Encoder {
public:
    Encoder(const Program& program, Ending ending, Vectors vectors, bool is_double)
        : elements_(program.elements),
          wide_(vectors == Vectors::kAvx512),
          vector_bytes_(static_cast<int>(vectors)),
          writer_(vectors, is_double) {
        operations_.assign(elements_.operations, elements_.operations + elements_.operation_count);
        for (int j = 0; j < elements_.state_count; ++j)
            outputs_.push_back({elements_.states[j], kFirstStateOperand + j});
        if (ending == Ending::kUpdate) {
            outputs_.push_back({elements_.update, kUpdateRegister});
        } else {
            operations_.push_back({Op::kSubtract, {kParamOperand, elements_.update, 0}});
            outputs_.push_back(
                {static_cast<Value>(kFirstResult + operations_.size() - 1), static_cast<int>(kParamOperand)});
        }
        find_uses();
    }

    std::vector<uint8_t> encode() {
        // First without scalars in registers, to see how many registers are left for them.
        body();
        const int left = registers() - most_;
        std::vector<std::pair<int, int>> wanted;  // minus the uses of a place in the table, the place
        for (const auto& [place, uses] : table_uses_) wanted.push_back({-uses, place});
        std::ranges::sort(wanted);
        for (int i = 0; i < left && i < static_cast<int>(wanted.size()); ++i)
            held_[wanted[i].second] = registers() - 1 - i;

        writer_.bytes.clear();
        writer_.put({0xF3, 0x0F, 0x1E, 0xFA});  // endbr64
        for (int j = 0; j < kFirstTemporary; ++j) {
            if (!touched_[j]) continue;
            const int to = kAddresses[j];
            writer_.put({0x48 | (to >= 8) << 2, 0x8B, 0x47 | (to & 7) << 3, 8 * j});  // mov to, [rdi + 8 j]
            writer_.put({0x48 | (to >= 8), 0x01, 0xC0 | kIndex << 3 | (to & 7)});     // add to, rdx
        }
        writer_.put({0x48, 0xF7, 0xDA});  // neg rdx
        for (const auto& [place, to] : held_) writer_.load(to, in_table(place));
        while (writer_.bytes.size() % 32 != 0) writer_.put({0x90});
        const size_t top = writer_.bytes.size();
        body();
        writer_.put({0x48, 0x83, 0xC2, vector_bytes_});  // add rdx, bytes of a vector
        writer_.put({0x0F, 0x85});                       // jnz top
        const auto back = static_cast<int32_t>(top) - static_cast<int32_t>(writer_.bytes.size()) - 4;
        for (int shift = 0; shift < 32; shift += 8) writer_.put({back >> shift & 255});
        writer_.put({0xC5, 0xF8, 0x77, 0xC3});  // vzeroupper; ret
        return writer_.bytes;
    }

private:
    struct Output {
        Value value;
        int array;
    };

    int registers() const { return wide_ ? 32 : 16; }
    bool is_mask(Value value) const {
        return value >= kFirstResult && result_of(operations_[value - kFirstResult].op) == 'c';
    }
    Place in_table(int place) const { return {true, kTable, place * vector_bytes_, false}; }
    Place in_array(int array) const { return {true, kAddresses[array], 0, true}; }

    // The last operation that needs each value, and which arrays are touched. What no result needs is left out.
    void find_uses() {
        const int count = static_cast<int>(operations_.size());
        needed_.assign(count, false);
        const auto need = [&](Value value) {
            if (value >= kFirstResult) needed_[value - kFirstResult] = true;
        };
        for (const Output& output : outputs_) {
            need(output.value);
            last_[output.value] = count;
            touched_[output.array] = true;
            if (output.value >= 0 && output.value < kFirstResult) touched_[output.value] = true;
        }
        for (int i = count - 1; i >= 0; --i) {
            if (!needed_[i]) continue;
            for (size_t j = 0; operands_of(operations_[i].op)[j]; ++j) {
                const Value operand = operations_[i].operands[j];
                need(operand);
                ++uses_[operand];
                if (!last_.contains(operand)) last_[operand] = i;
                if (operand >= 0 && operand < kFirstResult) touched_[operand] = true;
            }
        }
    }

    // Registers.

    int take() {
        if (free_.empty()) throw OutOfRegisters();
        const int taken = free_.back();
        free_.pop_back();
        most_ = std::max(most_, registers() - static_cast<int>(held_.size()) - static_cast<int>(free_.size()));
        return taken;
    }
    int take_mask() {
        if (!wide_) return take();
        if (free_masks_.empty()) throw OutOfRegisters();
        const int taken = free_masks_.back();
        free_masks_.pop_back();
        return taken;
    }
    void give(int number) { free_.push_back(number); }
    void give_mask(int number) { (wide_ ? free_masks_ : free_).push_back(number); }

    // The place in the table of a scalar or constant, where it is read as an operand.
    Place from_table(int place) {
        ++table_uses_[place];
        const auto held = held_.find(place);
        return held != held_.end() ? vector(held->second) : in_table(place);
    }
    bool is_in_memory(Value value) const {
        return value < 0 ? !held_.contains(-1 - value) : value < kFirstResult && !loaded_.contains(value);
    }
    int load_array(Value value) {
        if (!loaded_.contains(value)) {
            loaded_[value] = take();
            writer_.load(loaded_[value], in_array(value));
        }
        return loaded_.at(value);
    }
    // A value as a second source. An array stays in memory, and is read there once more, if that takes fewer
    // instructions than reading it first: with AVX-512, reading is slower.
    Place source(Value value) {
        if (value < 0) return from_table(-1 - value);
        if (!is_in_memory(value)) return vector(loaded_.at(value));
        return uses_.at(value) <= (wide_ ? 1 : 2) ? in_array(value) : vector(load_array(value));
    }
    // A value as a first source, which is in a register. `spare` is given back after the operation, if there is one.
    int first(Value value, std::vector<int>& spare) {
        if (value < 0) return in_register(from_table(-1 - value), spare);
        return value < kFirstResult ? load_array(value) : loaded_.at(value);
    }
    int in_register(const Place& place, std::vector<int>& spare) {
        if (!place.in_memory) return place.number;
        const int loaded = take();
        writer_.load(loaded, place);
        spare.push_back(loaded);
        return loaded;
    }

    // The loop's body for one vector.

    void body() {
        free_.clear();
        for (int i = registers() - 1 - static_cast<int>(held_.size()); i >= 0; --i) free_.push_back(i);
        free_masks_ = {7, 6, 5, 4, 3, 2, 1};
        loaded_.clear();
        table_uses_.clear();
        most_ = 0;
        for (int i = 0; i < static_cast<int>(operations_.size()); ++i) {
            if (!needed_[i]) continue;
            std::vector<int> spare;
            const int to = compute(operations_[i], spare);
            for (int number : spare) give(number);
            loaded_[kFirstResult + i] = to;
            std::vector<Value> dead;
            for (const auto& [value, number] : loaded_)
                if (last_.at(value) <= i) dead.push_back(value);
            for (Value value : dead) {
                is_mask(value) ? give_mask(loaded_[value]) : give(loaded_[value]);
                loaded_.erase(value);
            }
        }
        std::vector<int> spare;
        std::vector<std::pair<int, int>> stores;  // all are read before the first is written
        for (const Output& output : outputs_) stores.push_back({first(output.value, spare), output.array});
        for (const auto& [from, array] : stores) writer_.store(from, in_array(array));
    }

    int compute(const Operation& operation, std::vector<int>& spare) {
        const auto operand = [&](int j) { return static_cast<Value>(operation.operands[j]); };
        const auto binary = [&](int opcode, bool commutes) {
            const bool swaps = commutes && is_in_memory(operand(0)) && !is_in_memory(operand(1));
            const Place b = source(operand(swaps ? 0 : 1));
            const int a = first(operand(swaps ? 1 : 0), spare), to = take();
            writer_.arithmetic(opcode, to, a, b);
            return to;
        };
        const auto compare = [&](int predicate, int a, const Place& b) {
            const int to = take_mask();
            writer_.compare(predicate, to, a, b);
            return to;
        };
        constexpr int kLess = 0x11, kAtMost = 0x12, kEqual = 0x00, kNotEqual = 0x04, kUnordered = 0x03, kMore = 0x1E,
                      kLessOrMore = 0x0C;
        const auto mask = [&](int j) {
            if (operand(j) >= 0) return loaded_.at(operand(j));
            const int a = first(operand(j), spare), made = compare(kNotEqual, a, from_table(kZero));
            spare_masks_.push_back(made);
            return made;
        };
        const int result = [&] {
            switch (operation.op) {
                case Op::kAdd:
                    return binary(0x58, true);
                case Op::kSubtract:
                    return binary(0x5C, false);
                case Op::kMultiply:
                    return binary(0x59, true);
                case Op::kDivide:
                    return binary(0x5E, false);
                case Op::kRoot: {
                    const Place x = source(operand(0));
                    const int to = take();
                    writer_.root(to, x);
                    return to;
                }
                case Op::kNegative:
                case Op::kMagnitude: {
                    const bool negates = operation.op == Op::kNegative;
                    const Place x = source(operand(0));
                    const int top = in_register(from_table(kTopBit), spare), to = take();
                    writer_.arithmetic(negates ? 0x57 : 0x55, to, top, x);
                    return to;
                }
                case Op::kSign: {
                    const int x = first(operand(0), spare), to = take();
                    writer_.arithmetic(0x58, to, x, from_table(kZero));
                    const int top = in_register(from_table(kTopBit), spare);
                    const int nonzero = compare(kLessOrMore, to, from_table(kZero));
                    spare_masks_ = {nonzero};
                    if (wide_) {
                        writer_.blend_bits(to, top, from_table(kOne), nonzero);
                        return to;
                    }
                    const int one = take();  // with the sign of x
                    spare.push_back(one);
                    writer_.arithmetic(0x54, one, to, vector(top));
                    writer_.arithmetic(0x56, one, one, from_table(kOne));
                    writer_.blend(to, to, vector(one), nonzero);
                    return to;
                }
                case Op::kLarger:
                case Op::kSmaller: {
                    const int a = first(operand(0), spare), b = first(operand(1), spare);
                    const int beyond = compare(operation.op == Op::kLarger ? kMore : kLess, a, vector(b));
                    const int nan = compare(kUnordered, a, vector(a));
                    combine(Op::kEither, beyond, beyond, nan);
                    spare_masks_ = {beyond, nan};
                    const int to = take();
                    writer_.blend(to, b, vector(a), beyond);
                    return to;
                }
                case Op::kLess:
                    return compare(kLess, first(operand(0), spare), source(operand(1)));
                case Op::kAtMost:
                    return compare(kAtMost, first(operand(0), spare), source(operand(1)));
                case Op::kEqual:
                    return compare(kEqual, first(operand(0), spare), source(operand(1)));
                case Op::kBoth:
                case Op::kEither: {
                    const int a = mask(0), b = mask(1), to = take_mask();
                    combine(operation.op, to, a, b);
                    return to;
                }
                case Op::kNot: {
                    const int a = mask(0), to = take_mask();
                    if (wide_)
                        writer_.masks(Op::kNot, to, 0, a);
                    else
                        writer_.arithmetic(0x57, to, a, from_table(kAllBits));
                    return to;
                }
                default: {  // a selection
                    const int which = mask(0);
                    const Place yes = source(operand(1));
                    const int no = first(operand(2), spare), to = take();
                    writer_.blend(to, no, yes, which);
                    return to;
                }
            }
        }();
        for (int made : spare_masks_) give_mask(made);
        spare_masks_.clear();
        return result;
    }
    void combine(Op op, int to, int a, int b) {
        if (wide_) return writer_.masks(op, to, a, b);
        writer_.arithmetic(op == Op::kBoth ? 0x54 : 0x56, to, a, vector(b));
    }

    const Elements& elements_;
    const bool wide_;
    const int vector_bytes_;
    Writer writer_;
    std::vector<Operation> operations_;
    std::vector<Output> outputs_;
    std::vector<bool> needed_;
    std::map<Value, int> last_, uses_;
    bool touched_[kFirstTemporary] = {};
    std::map<int, int> held_;      // place in the table -> the register that holds it during the loop
    std::map<Value, int> loaded_;  // value -> its register, or its mask
    std::map<int, int> table_uses_;
    std::vector<int> free_, free_masks_, spare_masks_;
    int most_ = 0;  // registers that were taken at once
};

}  // namespace

std::vector<uint8_t> encode(const Program& program, Ending ending, Vectors vectors, bool is_double) {
    try {
        return Encoder(program, ending, vectors, is_double).encode();
    } catch (const OutOfRegisters&) {
        return {};
    }
}

}  // namespace fusedstep
