/* How much an operation takes, and how it is cut into dispatches of bounded work. */
#ifndef OPS_WORK_H
#define OPS_WORK_H

#include "oxb_driver.h"

/* Multiply-adds of an op over the extent of its shape, roughly, or what takes as long: products of
 * a matrix, and queries and weights by the keys and values of every position that attention may
 * meet. Other ops count the elements that they read. UINT64_MAX where 64 bits do not hold it.
 *
 * Attention is bound by its loads. Each of its multiply-adds counts as
 *     1 + ceil(5 * bytes of an element of the caches / queries of a tile)
 * for a tile loads an element once for all of its queries: as 4 with half floats and four queries,
 * as 11 with one query, which is what long heads have. */
uint64_t ops_work(oxb_op op, const oxb_op_shape *shape, const oxb_tile *tile);

/* The elements of an axis of `extent` that one dispatch takes, where each takes `unit` of work: a
 * multiple of `grain`, or the whole extent. A dispatch takes `bound` at most, unless a single grain
 * takes more, and all of them nearly the same. bound 0: the whole extent. */
uint64_t ops_piece(uint64_t unit, uint64_t bound, uint64_t extent, uint64_t grain);

#endif
