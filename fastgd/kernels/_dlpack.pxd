# What is needed of DLPack's C exchange API; declared in src_c/dlpack.h.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "dlpack.h" nogil:
    const char* CAPSULE "FASTGD_DLPACK_CAPSULE"
    const uint32_t MAJOR "FASTGD_DLPACK_MAJOR"
    const int32_t CPU "FASTGD_DLPACK_CPU"
    const uint8_t INT "FASTGD_DLPACK_INT"
    const uint8_t UINT "FASTGD_DLPACK_UINT"
    const uint8_t FLOAT "FASTGD_DLPACK_FLOAT"
    const uint8_t BFLOAT "FASTGD_DLPACK_BFLOAT"

    ctypedef struct DLDevice "fastgd_dl_device":
        int32_t type

    ctypedef struct DLType "fastgd_dl_type":
        uint8_t code
        uint8_t bits
        uint16_t lanes

    ctypedef struct DLTensor "fastgd_dl_tensor":
        void* data
        DLDevice device
        int32_t ndim
        DLType dtype
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset

    ctypedef struct Version "fastgd_dl_version":
        uint32_t major

    ctypedef struct Exchange "fastgd_dl_exchange":
        Version version
        int (*tensor_of)(void* object, DLTensor* out)
