#include "programs/program.h"

#include <stdexcept>
#include <string>

namespace fusedstep {
namespace {

[[noreturn]] void refuse(const std::string& what) {
    throw std::invalid_argument("define: " + what);
}

void check_count(const char* name, int64_t count, int64_t most) {
    if (count < 0 || count > most)
        refuse(std::string(name) + " is " + std::to_string(count) + ", expected at most " + std::to_string(most));
}

int arity(Op op) {
    int n = 0;
    for (const char* operands = operands_of(op); *operands; ++operands) ++n;
    return n;
}

void check_op(Op op) {
    if (op >= Op::kCount) refuse("there is no operation number " + std::to_string(static_cast<int>(op)));
}

void check_number(int16_t number, int count) {
    if (number < 0 || number >= count)
        refuse("number " + std::to_string(number) + " is not there, expected less than " + std::to_string(count));
}

void check_numbers(const Numbers& numbers) {
    check_count("the number of hyperparameters", numbers.hyper_count, kMaxOwnHypers);
    check_count("the number of memories", numbers.memory_count, kMaxMemory);
    check_count("the number of constants", numbers.constant_count, kMaxConstants);
    check_count("the number of operations on numbers", numbers.operation_count, kMaxOperations);
    check_count("the number of scalars", numbers.scalar_count, kMaxRuleScalars);
    for (int i = 0; i < numbers.operation_count; ++i) {
        const Operation& operation = numbers.operations[i];
        check_op(operation.op);
        for (int j = 0; j < 3; ++j) check_number(operation.operands[j], numbers.first_operation() + i);
    }
    for (int i = 0; i < numbers.memory_count; ++i) check_number(numbers.memory[i], numbers.count());
    for (int i = 0; i < numbers.scalar_count; ++i) check_number(numbers.scalars[i], numbers.count());
}

// The kind of an operand of elements: 'x', 'c' for a condition, or '?' for a scalar, which may be either.
char kind_of(const Program& program, int16_t operand, int done) {
    if (operand < 0) {
        check_number(static_cast<int16_t>(-1 - operand), program.numbers.scalar_count);
        return '?';
    }
    if (operand >= kFirstResult) {
        check_number(static_cast<int16_t>(operand - kFirstResult), done);
        return result_of(program.elements.operations[operand - kFirstResult].op);
    }
    if (operand >= kFirstStateOperand)
        check_number(static_cast<int16_t>(operand - kFirstStateOperand), program.elements.state_count);
    return 'x';
}

void check_result(const Program& program, int16_t operand) {
    if (kind_of(program, operand, program.elements.operation_count) == 'c') refuse("a condition is no result");
}

void check_elements(const Program& program) {
    const Elements& elements = program.elements;
    check_count("the number of states", elements.state_count, kMaxStates);
    check_count("the number of operations on elements", elements.operation_count, kMaxOperations);
    for (int i = 0; i < elements.operation_count; ++i) {
        const Operation& operation = elements.operations[i];
        check_op(operation.op);
        if (operation.op == Op::kPower) refuse("a power is of numbers only");
        const char* const kinds = operands_of(operation.op);
        bool has_element = false;
        for (int j = 0; j < arity(operation.op); ++j) {
            const char kind = kind_of(program, operation.operands[j], i);
            if (kind != kinds[j] && kind != '?') refuse("a condition stands in place of an element, or beside one");
            has_element = has_element || operation.operands[j] >= 0;
        }
        if (!has_element) refuse("an operation on elements has numbers only");
    }
    check_result(program, elements.update);
    for (int i = 0; i < elements.state_count; ++i) check_result(program, elements.states[i]);
}

}  // namespace

void check(const Program& program) {
    check_numbers(program.numbers);
    check_elements(program);
}

}  // namespace fusedstep
