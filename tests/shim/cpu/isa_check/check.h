/* What the files of the check program share. */
#ifndef ISA_CHECK_H
#define ISA_CHECK_H

#include "cpu/isa/isa.h"

float random_float(void); /* -0.25 to 0.75 */
void expect(int holds, const char *variant, const char *what, double value, double limit);

/* recurrent.c */
void check_recurrent(const cpu_isa *isa);

#endif
