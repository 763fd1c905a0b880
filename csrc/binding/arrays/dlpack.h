// The binary interface of DLPack 1.3 (https://dmlc.github.io/dlpack), as far as it is used here: how libraries of
// arrays show their memory to C.
#pragma once

#include <stdint.h>

namespace fusedstep::dlpack {

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2, kCUDAHost = 3 };
enum Code : uint8_t { kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5 };

struct Device {
    int32_t type;  // a DeviceType
    int32_t id;
};

struct DataType {
    uint8_t code;  // a Code
    uint8_t bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements; null where rows are contiguous
    uint64_t byte_offset;
};

struct Version {
    uint32_t major, minor;
};

// What a capsule called "dltensor" holds.
struct Managed {
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);
};

// What a capsule called "dltensor_versioned" holds.
struct ManagedVersioned {
    Version version;
    void* context;
    void (*deleter)(ManagedVersioned*);
    uint64_t flags;
    Tensor tensor;
};
constexpr uint64_t kReadOnly = 1, kIsCopied = 2;  // flags

// What the capsule in the attribute __dlpack_c_exchange_api__ of a type holds.
struct ExchangeHeader {
    Version version;
    ExchangeHeader* older;  // the functions for an older version, or null
};
struct Exchange {
    ExchangeHeader header;
    void* allocate;
    void* managed_from_object;
    void* object_from_managed;
    int (*tensor_from_object)(void* object, Tensor* out);  // may be null
    int (*current_stream)(int32_t device_type, int32_t device_id, void** stream);
};

}  // namespace fusedstep::dlpack
