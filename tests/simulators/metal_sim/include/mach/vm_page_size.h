/* The bytes of a page, which <mach/vm_page_size.h> of macOS declares alike. */
#ifndef SIM_VM_PAGE_SIZE_H
#define SIM_VM_PAGE_SIZE_H

#include <stdint.h>

typedef uintptr_t vm_size_t;

extern vm_size_t vm_page_size;

#endif
