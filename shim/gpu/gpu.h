/* What the drivers of GPUs share, since they run the same kernels: the tiles of shaders/, their
 * abilities, and the layout of weights by columns. The functions fit a driver's table as they are.
 */
#ifndef GPU_GPU_H
#define GPU_GPU_H

#include "oxb_driver.h"

#define GPU_SIMD_WIDTH 32u

/* What a device is, as far as its best kernels depend on it. The first member of a driver's device:
 * the functions below find it there. */
#define GPU_APPLE  1u
#define GPU_NVIDIA 2u
#define GPU_INT8   4u /* int8 matrix units */
typedef struct gpu_traits {
    uint32_t has;   /* GPU_APPLE, GPU_NVIDIA, GPU_INT8 */
    uint32_t cores; /* Apple's GPU cores, NVIDIA's multiprocessors; 0: not known */
} gpu_traits;

/* Keep the services; a driver calls it before its table is used. */
void gpu_use(const oxb_host *host);

void gpu_abilities(void *device, oxb_abilities *abilities);
oxb_status gpu_tile(void *device, oxb_op op, const oxb_op_shape *shape, oxb_tile *tile);
uint32_t gpu_variants(void *device, oxb_op op, const oxb_op_shape *shape,
                      const char *names[OXB_MAX_VARIANTS]);

/* Scales [scale group][row], then loads of codes [load][row], 16 bytes or the 12 of t1_g128, so
 * that lanes with neighbouring rows read side by side. As many bytes as the plain layout, the codes
 * at the same offset. For coded formats. */
#define GPU_LAYOUT_COLUMNS 1u

uint32_t gpu_weight_layouts(void *device, oxb_device_format format, uint64_t n_rows, uint64_t k,
                            oxb_weight_layout layouts[OXB_MAX_LAYOUTS]);
oxb_status gpu_weight_pack(void *device, uint32_t layout, oxb_file_format format, const void *from,
                           uint64_t n_rows, uint64_t k, void *to, int *fits);

#endif
