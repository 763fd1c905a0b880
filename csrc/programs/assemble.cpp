// The assembler: from a program to the instructions of the accumulator machine. A result that several operations need
// goes to a register. All other operations form trees, whose values stay in the accumulator as far as possible. A tree
// is covered by as few instructions as possible, and then by those that read the fewest registers.
#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "programs/instructions.h"

namespace fusedstep {
namespace {

// Patterns: the texts of the steps, read as trees.

constexpr int kNonzero = static_cast<int>(Op::kCount);  // a scalar as a condition

struct Tree {
    char leaf = 0;  // one of a x y k q, or 0
    int op = 0;
    std::vector<Tree> parts = {};
};

Tree tree_of(Op op, std::vector<Tree> parts) {
    return {0, static_cast<int>(op), std::move(parts)};
}
#define UNARY(name, op)              \
    Tree name(Tree a) {              \
        return tree_of(Op::op, {a}); \
    }
#define BINARY(name, op)                \
    Tree name(Tree a, Tree b) {         \
        return tree_of(Op::op, {a, b}); \
    }
BINARY(operator+, kAdd)
BINARY(operator-, kSubtract)
BINARY(operator*, kMultiply)
BINARY(operator/, kDivide)
UNARY(root, kRoot)
UNARY(negative, kNegative)
UNARY(magnitude, kMagnitude)
UNARY(sign_of, kSign)
BINARY(larger, kLarger)
BINARY(smaller, kSmaller)
BINARY(less, kLess)
BINARY(at_most, kAtMost)
BINARY(equal, kEqual)
BINARY(both, kBoth)
BINARY(either, kEither)
UNARY(inverse, kNot)
#undef UNARY
#undef BINARY
Tree select(Tree c, Tree a, Tree b) {
    return tree_of(Op::kSelect, {c, a, b});
}
Tree nonzero(Tree k) {
    return {0, kNonzero, {k}};
}

const std::vector<Tree>& patterns() {
    static const std::vector<Tree> made = [] {
        [[maybe_unused]] const Tree a{'a'}, x{'x'}, y{'y'}, k{'k'}, q{'q'};
        std::vector<Tree> all;
#define PATTERN(Name, ...) all.push_back(__VA_ARGS__);
        FUSEDSTEP_INSTRUCTIONS(PATTERN)
#undef PATTERN
        return all;
    }();
    return made;
}

bool commutes(int op) {
    return op == static_cast<int>(Op::kAdd) || op == static_cast<int>(Op::kMultiply) ||
           op == static_cast<int>(Op::kEqual) || op == static_cast<int>(Op::kBoth) ||
           op == static_cast<int>(Op::kEither);
}

// The value of a program that is a scalar, an array, or the result of an operation; as operands number them, with
// further results behind.
using Value = int;

struct Node {
    int op = 0;
    std::vector<Value> operands = {};
};

struct Binding {
    static constexpr int kNames = 5;
    static constexpr Value kFree = INT32_MIN;
    std::array<Value, kNames> values;

    Binding() { values.fill(kFree); }
    static int place(char leaf) { return static_cast<int>(std::string_view("axykq").find(leaf)); }
    Value& operator[](char leaf) { return values[place(leaf)]; }
    Value operator[](char leaf) const { return values[place(leaf)]; }
    bool has(char leaf) const { return (*this)[leaf] != kFree; }
};

// How a result is computed: by a step, of the values that its letters stand for.
struct Choice {
    double cost;
    int step;
    Binding binding;
};

struct Output {
    Value value;
    int register_;
};

bool is_scalar(Value value) {
    return value < 0;
}
bool is_array(Value value) {
    return value >= 0 && value < kFirstResult;
}

class Assembler {
public:
    Assembler(const Program& program, Ending ending) {
        const Elements& elements = program.elements;
        for (int i = 0; i < elements.operation_count; ++i) add(elements.operations[i]);
        for (int j = 0; j < elements.state_count; ++j) outputs_.push_back({elements.states[j], kFirstStateOperand + j});
        if (ending == Ending::kUpdate) {
            outputs_.push_back({elements.update, kUpdateRegister});
        } else {
            nodes_.push_back({static_cast<int>(Op::kSubtract), {kParamOperand, elements.update}});
            outputs_.push_back({kFirstResult + static_cast<Value>(nodes_.size()) - 1, kParamOperand});
        }
        for (int i = kRegisters - 1; i >= kFirstTemporary; --i) free_.push_back(i);
        for (int i = 0; i < kFirstResult; ++i) register_of_[i] = i;
    }

    Code assemble() {
        find_roots();
        const std::vector<Value> order = place_results();
        std::map<Value, size_t> last;  // of a register, the root that reads it last
        for (size_t i = 0; i < order.size(); ++i)
            for (Value read : reads_[order[i]]) last[read] = i;
        std::vector<Output> copies;  // made in the end, all at once
        for (const Output& output : outputs_) {
            const auto home = register_of_.find(output.value);
            const bool is_there = (is_array(output.value) && home->second == output.register_) ||
                                  (place_.contains(output.value) && place_[output.value] == output.register_);
            if (is_there) continue;
            copies.push_back(output);
            last[output.value] = order.size();
        }
        for (size_t i = 0; i < order.size(); ++i) {
            const Value root = order[i];
            compute(root, true);
            for (Value read : reads_[root])
                if (last[read] == i && !is_array(read) && register_of_[read] >= kFirstTemporary)
                    free_.push_back(register_of_[read]);
            register_of_[root] = place_.contains(root) ? place_[root] : take();
            store(register_of_[root]);
        }
        copy(std::move(copies));
        emit(Do::kEnd);
        return code_;
    }

private:
    void add(const Operation& operation) {
        Node node{static_cast<int>(operation.op)};
        const char* const kinds = operands_of(operation.op);
        for (int j = 0; kinds[j]; ++j) {
            const Value operand = operation.operands[j];
            node.operands.push_back(kinds[j] == 'c' && is_scalar(operand) ? condition(operand) : operand);
        }
        nodes_.push_back(std::move(node));
    }
    // Conditions of scalars are numbered behind all results.
    Value condition(Value scalar) {
        const Value value = kFirstResult + kMaxOperations + 1 - scalar;
        conditions_[value] = {kNonzero, {scalar}};
        return value;
    }
    const Node& node_of(Value value) const {
        const auto found = conditions_.find(value);
        return found != conditions_.end() ? found->second : nodes_[value - kFirstResult];
    }

    // What is needed more than once, or is a result, is a root, with a register of its own.
    void find_roots() {
        for (const Output& output : outputs_) count(output.value);
        std::set<Value> seen;
        for (const Output& output : outputs_) collect(output.value, seen);
        for (Value root : roots_) read(root, true, reads_[root]);
    }
    void count(Value value) {
        if (is_scalar(value) || is_array(value) || uses_[value]++ > 0) return;
        for (Value operand : node_of(value).operands) count(operand);
    }
    void collect(Value value, std::set<Value>& seen) {
        if (is_scalar(value) || is_array(value) || !seen.insert(value).second) return;
        for (Value operand : node_of(value).operands) collect(operand, seen);
        if (uses_[value] > 1 || is_output(value)) roots_.push_back(value);
    }
    bool is_output(Value value) const { return std::ranges::count(outputs_, value, &Output::value) > 0; }
    bool in_register(Value value) const { return is_array(value) || std::ranges::count(roots_, value) > 0; }
    void read(Value value, bool is_root, std::set<Value>& found) {
        if (is_scalar(value)) return;
        if (!is_root && in_register(value)) {
            found.insert(value);
            return;
        }
        for (Value operand : node_of(value).operands) read(operand, false, found);
    }

    // Decide which results are written to the arrays that they belong to, and the order of the roots. A new state may
    // be written once nobody needs the old one; where that is impossible, it is copied in the end.
    std::vector<Value> place_results() {
        std::map<Value, std::set<Value>> after;
        for (Value root : roots_)
            for (Value read : reads_[root])
                if (!is_array(read)) after[root].insert(read);
        for (const Output& output : outputs_) {
            const Value value = output.value;
            if (is_scalar(value) || is_array(value) || place_.contains(value)) continue;
            auto more = after;
            bool kept = false;  // whether the old array is a result too, of another name
            if (output.register_ < kFirstResult) {
                const Value old = output.register_;
                for (Value root : roots_)
                    if (root != value && reads_[root].contains(old)) more[value].insert(root);
                for (const Output& other : outputs_)
                    kept = kept || (other.value == old && other.register_ != output.register_);
            }
            if (kept || !sorted(more)) continue;
            after = std::move(more);
            place_[value] = output.register_;
        }
        return *sorted(after);
    }
    std::optional<std::vector<Value>> sorted(std::map<Value, std::set<Value>>& after) const {
        std::vector<Value> order;
        while (order.size() < roots_.size()) {
            const auto next = std::ranges::find_if(roots_, [&](Value root) {
                return std::ranges::count(order, root) == 0 && std::ranges::all_of(after[root], [&](Value earlier) {
                           return std::ranges::count(order, earlier) > 0;
                       });
            });
            if (next == roots_.end()) return std::nullopt;
            order.push_back(*next);
        }
        return order;
    }

    // Call visit(binding) for every way in which a pattern fits a value.
    template <class Visit>
    void match(const Tree& pattern, Value value, bool is_root, const Binding& binding, Visit visit) const {
        if (pattern.leaf) {
            const bool wants_scalar = pattern.leaf == 'k' || pattern.leaf == 'q';
            if (wants_scalar != is_scalar(value)) return;
            if (binding.has(pattern.leaf) && binding[pattern.leaf] != value) return;
            Binding more = binding;
            more[pattern.leaf] = value;
            return visit(more);
        }
        if (is_scalar(value) || is_array(value) || (!is_root && in_register(value))) return;
        const Node& node = node_of(value);
        if (node.op != pattern.op) return;
        match_parts(pattern, node.operands, 0, binding, visit);
        if (commutes(node.op)) match_parts(pattern, {node.operands[1], node.operands[0]}, 0, binding, visit);
    }
    template <class Visit>
    void match_parts(const Tree& pattern, const std::vector<Value>& operands, size_t i, const Binding& binding,
                     const Visit& visit) const {
        if (i == operands.size()) return visit(binding);
        const std::function<void(const Binding&)> next = [&](const Binding& more) {
            match_parts(pattern, operands, i + 1, more, visit);
        };
        match(pattern.parts[i], operands[i], false, binding, next);
    }

    // The cheapest way to bring a value into the accumulator.
    const Choice& best(Value value, bool is_root) {
        const auto key = std::pair(value, is_root);
        if (const auto known = best_.find(key); known != best_.end()) return known->second;
        Choice found{1e9, 0, {}};
        if (!is_root && in_register(value)) {
            found = {1, static_cast<int>(Do::kLoad), {}};
            found.binding['x'] = value;
        } else {
            for (size_t step = static_cast<size_t>(Do::kNonzero); step < patterns().size(); ++step) {
                const std::function<void(const Binding&)> visit = [&](const Binding& binding) {
                    double cost = 1;
                    for (char letter : {'x', 'y'})
                        if (binding.has(letter)) {
                            cost += 0.05;
                            if (!in_register(binding[letter])) cost += best(binding[letter], false).cost + 1;
                        }
                    if (binding.has('a')) cost += best(binding['a'], false).cost;
                    if (cost < found.cost) found = {cost, static_cast<int>(step), binding};
                };
                match(patterns()[step], value, true, {}, visit);
            }
        }
        return best_[key] = found;
    }

    // Bring a value into the accumulator.
    void compute(Value value, bool is_root) {
        if (!is_root && accumulator_ == value) return;
        const Choice choice = best(value, is_root);
        std::vector<int> temporaries;
        int registers[2] = {0, 0};
        for (int i = 0; i < 2; ++i) {
            const char letter = "xy"[i];
            if (!choice.binding.has(letter)) continue;
            const Value operand = choice.binding[letter];
            if (in_register(operand)) {
                registers[i] = register_of_.at(operand);
            } else if (i == 1 && choice.binding['x'] == operand) {
                registers[i] = registers[0];
            } else {
                compute(operand, false);
                registers[i] = take();
                temporaries.push_back(registers[i]);
                store(registers[i]);
            }
        }
        if (choice.binding.has('a')) compute(choice.binding['a'], false);
        emit(static_cast<Do>(choice.step), registers[0], registers[1], scalar(choice.binding, 'k'),
             scalar(choice.binding, 'q'));
        free_.insert(free_.end(), temporaries.begin(), temporaries.end());
        accumulator_ = value;
    }
    static int scalar(const Binding& binding, char letter) { return binding.has(letter) ? -1 - binding[letter] : 0; }

    // Copy values to registers as if all at once: none is overwritten before it has been read.
    void copy(std::vector<Output> waiting) {
        struct Move {
            int from, to;
        };
        std::vector<Move> moves;
        std::vector<Output> fills;
        for (const Output& output : waiting)
            if (is_scalar(output.value))
                fills.push_back(output);
            else
                moves.push_back({register_of_.at(output.value), output.register_});
        while (!moves.empty()) {
            const auto next = std::ranges::find_if(moves, [&](const Move& move) {
                return std::ranges::none_of(
                    moves, [&](const Move& other) { return &other != &move && other.from == move.to; });
            });
            if (next == moves.end()) {  // a ring
                const int spare = take();
                emit(Do::kLoad, moves.front().from);
                store(spare);
                const int from = moves.front().from;
                for (Move& move : moves)
                    if (move.from == from) move.from = spare;
                continue;
            }
            emit(Do::kLoad, next->from);
            store(next->to);
            moves.erase(next);
        }
        for (const Output& output : fills) {
            emit(Do::kFill, 0, 0, -1 - output.value);
            store(output.register_);
        }
    }

    int take() {
        if (free_.empty())
            throw std::length_error("has more than " + std::to_string(kRegisters - kFirstTemporary) +
                                    " intermediate results at once, expected fewer");
        const int taken = free_.back();
        free_.pop_back();
        return taken;
    }
    void store(int to) {
        emit(Do::kStore, to);
        if (to < kFirstTemporary) code_.written |= 1u << to;
    }
    void emit(Do what, int x = 0, int y = 0, int k = 0, int q = 0) {
        if (code_.count == kMaxInstructions)
            throw std::length_error("takes more than " + std::to_string(kMaxInstructions) + " steps, expected fewer");
        code_.instructions[code_.count++] = {what, static_cast<uint8_t>(x), static_cast<uint8_t>(y),
                                             static_cast<uint8_t>(k), static_cast<uint8_t>(q)};
    }

    std::vector<Node> nodes_;
    std::map<Value, Node> conditions_;
    std::vector<Output> outputs_;
    std::map<Value, int> uses_;
    std::vector<Value> roots_;
    std::map<Value, std::set<Value>> reads_;  // of a root, the registers that its tree reads
    std::map<Value, int> place_;              // of a result, the array that it is written to at once
    std::map<Value, int> register_of_;
    std::vector<int> free_;
    std::map<std::pair<Value, bool>, Choice> best_;
    Value accumulator_ = Binding::kFree;
    Code code_ = {};
};

}  // namespace

Code assemble(const Program& program, Ending ending) {
    return Assembler(program, ending).assemble();
}

}  // namespace fusedstep
