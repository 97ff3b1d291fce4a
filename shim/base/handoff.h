/* A list that any thread adds to, without a lock and without memory of its own, and that another
 * empties at once. */
#ifndef BASE_HANDOFF_H
#define BASE_HANDOFF_H

#include <stdatomic.h>
#include <stddef.h>

/* The first member of what is handed over. */
typedef struct handoff_node {
    struct handoff_node *next;
} handoff_node;

typedef struct handoff_list {
    _Atomic(handoff_node *) last; /* added last; NULL where the list is empty */
} handoff_list;

static inline void handoff_add(handoff_list *list, handoff_node *node) {
    handoff_node *last = atomic_load(&list->last);
    do node->next = last;
    while (!atomic_compare_exchange_weak(&list->last, &last, node));
}

/* Everything in the list, the last first; NULL for nothing, which costs one load. */
static inline handoff_node *handoff_take(handoff_list *list) {
    return atomic_load(&list->last) ? atomic_exchange(&list->last, NULL) : NULL;
}

#endif
