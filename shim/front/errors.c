/* The message of the last failure in each thread. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "front.h"

static _Thread_local char message[4096];

const char *oxb_last_error(void) { return message; }

oxb_status front_fail(oxb_status status, const char *format, ...) {
    /* Formatted apart first: an argument may be the kept message itself. */
    char text[sizeof message];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(message, text, sizeof message);
    return status;
}
