/* Weight formats: pure functions over blocks and the tables of oxb_formats.h. */
#ifndef FORMATS_FORMATS_H
#define FORMATS_FORMATS_H

#include <stdint.h>

#include "oxb_formats.h"

/* Bytes of `length` bytes of whole blocks in the plain layout, and where its codes start. */
uint64_t formats_plain_size(oxb_file_format format, uint64_t length, uint64_t *codes_offset);

/* Write `length` bytes of whole blocks to `to` in the plain layout: the scales of all scale groups,
 * padded to 16 bytes, then the codes of all scale groups, both in row order. Dense formats are
 * copied. */
void formats_pack_plain(oxb_file_format format, const void *from, uint64_t length, void *to);

/* Split n blocks of a coded format into scales and codes in the order of the device format. */
void formats_reformat_blocks(oxb_file_format format, const uint8_t *from, uint64_t n,
                             uint8_t *scales, uint8_t *codes);

#endif
