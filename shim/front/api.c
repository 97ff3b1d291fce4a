/* The function table that foreign code receives through a capsule. */
#include "front.h"

const oxb_api *oxb_api_table(void) {
    static const oxb_api table = {.abi_version = OXB_ABI_VERSION,
                                  .struct_size = sizeof(oxb_api),
#define X(type, name, parameters) .name = oxb_##name,
                                  OXB_FUNCTIONS(X)
#undef X
    };
    return &table;
}
