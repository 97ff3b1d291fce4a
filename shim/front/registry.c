/* The drivers: those built in, and those loaded from shared libraries. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "base/builtin_drivers.h"
#include "formats/formats.h"
#include "front.h"

#define MAX_DRIVERS 16u

static const oxb_host host = {.abi_version = OXB_ABI_VERSION,
                              .struct_size = sizeof(oxb_host),
                              .fail = front_fail,
                              .file_format = oxb_file_format_of,
                              .device_format = oxb_device_format_of,
                              .reformat_blocks = formats_reformat_blocks};

/* The list only grows; `driver_lock` guards it and is a leaf. */
static pthread_mutex_t driver_lock = PTHREAD_MUTEX_INITIALIZER;
static const oxb_driver *drivers[MAX_DRIVERS];
static uint32_t n_drivers;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Once, before anything else: the environment, and the drivers built in, in the order in which the
 * default device is looked for. */
static void begin(void) {
    front_read_trace();
#ifdef OXB_HAVE_METAL
    drivers[n_drivers++] = metal_driver(&host);
#endif
#ifdef OXB_HAVE_CUDA
    drivers[n_drivers++] = cuda_driver(&host);
#endif
    drivers[n_drivers++] = cpu_driver(&host);
}

uint32_t oxb_driver_count(void) {
    pthread_once(&once, begin);
    pthread_mutex_lock(&driver_lock);
    uint32_t n = n_drivers;
    pthread_mutex_unlock(&driver_lock);
    return n;
}

const oxb_driver *front_driver_at(uint32_t index) {
    if (index >= oxb_driver_count()) return NULL;
    pthread_mutex_lock(&driver_lock);
    const oxb_driver *driver = index < n_drivers ? drivers[index] : NULL;
    pthread_mutex_unlock(&driver_lock);
    return driver;
}

const char *oxb_driver_name(uint32_t index) {
    const oxb_driver *driver = front_driver_at(index);
    return driver ? driver->name : NULL;
}

/* A driver of that name; several can have it, the one loaded last is found. */
const oxb_driver *front_driver_named(const char *name) {
    const oxb_driver *driver;
    for (uint32_t i = 0; (driver = front_driver_at(i)); i++) {
        if (strcmp(driver->name, name) == 0) return driver;
    }
    return NULL;
}

oxb_status oxb_driver_load(const char *path) {
    pthread_once(&once, begin);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return front_fail(OXB_DEVICE_NOT_FOUND, "cannot load driver %s: %s", path, dlerror());
    void *symbol = dlsym(library, OXB_DRIVER_ENTRY);
    const oxb_driver *driver = NULL;
    if (!symbol) {
        front_fail(OXB_DEVICE_NOT_FOUND, "%s is no driver: it does not export " OXB_DRIVER_ENTRY,
                   path);
    } else {
        oxb_driver_entry_fn entry;
        memcpy(&entry, &symbol,
               sizeof entry); /* ISO C has no cast from object to function pointer */
        front_fail(OXB_DEVICE_NOT_FOUND, "%s: " OXB_DRIVER_ENTRY " gave no driver and no reason",
                   path);
        driver = entry(&host);
    }
    if (driver &&
        (driver->abi_version != OXB_ABI_VERSION || driver->struct_size != sizeof *driver)) {
        front_fail(OXB_DEVICE_NOT_FOUND,
                   "%s was built for driver ABI %u with a table of %u bytes; this is ABI %u with "
                   "%zu: build it again",
                   path, driver->abi_version, driver->struct_size, OXB_ABI_VERSION, sizeof *driver);
        driver = NULL;
    }
    oxb_status status = driver ? front_check_driver(driver) : OXB_DEVICE_NOT_FOUND;
    if (status == OXB_OK) {
        pthread_mutex_lock(&driver_lock);
        if (n_drivers == MAX_DRIVERS) {
            status = front_fail(OXB_DEVICE_NOT_FOUND,
                                "%s: %u drivers are loaded already, the most there can be", path,
                                MAX_DRIVERS);
        } else {
            memmove(drivers + 1, drivers, n_drivers * sizeof drivers[0]);
            drivers[0] = driver;
            n_drivers++;
        }
        pthread_mutex_unlock(&driver_lock);
    }
    if (status != OXB_OK) dlclose(library);
    return status;
}

oxb_status front_no_driver(const char *name) {
    char known[MAX_DRIVERS * 18] = "";
    const oxb_driver *driver;
    for (uint32_t i = 0; (driver = front_driver_at(i)); i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%.15s", used ? ", " : "", driver->name);
    }
    return front_fail(OXB_DEVICE_NOT_FOUND, "no driver \"%.64s\" in this build: it has %s", name,
                      known);
}
