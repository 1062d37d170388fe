/* What is needed of DLPack's C exchange API (version 1): how a library lends the memory of a tensor
 * for the duration of a call.  https://dmlc.github.io/dlpack/latest/c_api.html
 */
#ifndef FASTGD_DLPACK_H
#define FASTGD_DLPACK_H

#include <stdint.h>

#define FASTGD_DLPACK_CAPSULE "dlpack_exchange_api"
#define FASTGD_DLPACK_MAJOR 1
#define FASTGD_DLPACK_CPU 1
#define FASTGD_DLPACK_INT 0
#define FASTGD_DLPACK_UINT 1
#define FASTGD_DLPACK_FLOAT 2
#define FASTGD_DLPACK_BFLOAT 4

typedef struct {
    int32_t type;
    int32_t id;
} fastgd_dl_device;

typedef struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
} fastgd_dl_type;

typedef struct {
    void *data;
    fastgd_dl_device device;
    int32_t ndim;
    fastgd_dl_type dtype;
    int64_t *shape;
    int64_t *strides; /* in elements */
    uint64_t byte_offset;
} fastgd_dl_tensor;

typedef struct {
    uint32_t major;
    uint32_t minor;
} fastgd_dl_version;

typedef struct {
    fastgd_dl_version version;
    void *previous;
    void (*make)(void); /* functions that fastgd has no use for */
    void (*managed_of)(void);
    void (*object_of)(void);
    int (*tensor_of)(void *object, fastgd_dl_tensor *out); /* 0, or -1 with an exception set */
    void (*stream)(void);
} fastgd_dl_exchange;

#endif
