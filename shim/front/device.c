/* Errors, the driver list and devices. */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/builtin_drivers.h"
#include "formats/formats.h"
#include "front.h"

#define MAX_DRIVERS 16u

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

static const oxb_driver *driver_at(uint32_t index) {
    if (index >= oxb_driver_count()) return NULL;
    pthread_mutex_lock(&driver_lock);
    const oxb_driver *driver = index < n_drivers ? drivers[index] : NULL;
    pthread_mutex_unlock(&driver_lock);
    return driver;
}

const char *oxb_driver_name(uint32_t index) {
    const oxb_driver *driver = driver_at(index);
    return driver ? driver->name : NULL;
}

/* A driver of that name; several can have it, the one loaded last is found. */
static const oxb_driver *driver_named(const char *name) {
    const oxb_driver *driver;
    for (uint32_t i = 0; (driver = driver_at(i)); i++) {
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

static oxb_status no_driver(const char *name) {
    char known[MAX_DRIVERS * 18] = "";
    const oxb_driver *driver;
    for (uint32_t i = 0; (driver = driver_at(i)); i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%.15s", used ? ", " : "", driver->name);
    }
    return front_fail(OXB_DEVICE_NOT_FOUND, "no driver \"%.64s\" in this build: it has %s", name,
                      known);
}

oxb_status oxb_device_count(const char *name, uint32_t *count) {
    const oxb_driver *driver = driver_named(name);
    if (!driver) return no_driver(name);
    return driver->device_count(count);
}

const char *oxb_device_variant(const char *name, uint32_t index) {
    const oxb_driver *driver = driver_named(name);
    return driver && driver->variant ? driver->variant(index) : NULL;
}

static oxb_status open_with(const oxb_driver *driver, uint32_t index,
                            const oxb_device_options *options, oxb_device **out) {
    static const oxb_device_options defaults = {0};
    uint32_t count = 0;
    oxb_status status = front_check_driver(driver);
    if (status == OXB_OK) status = front_check_trace();
    if (status == OXB_OK) status = driver->device_count(&count);
    if (status != OXB_OK) return status;
    if (index >= count) {
        return front_fail(OXB_DEVICE_NOT_FOUND,
                          "no device \"%s:%u\": %u device%s of driver \"%s\" present", driver->name,
                          index, count, count == 1 ? "" : "s", driver->name);
    }
    oxb_device *device = calloc(1, sizeof *device);
    if (!device)
        return front_fail(OXB_DEVICE_NOT_FOUND, "out of memory for device \"%s:%u\"", driver->name,
                          index);
    status = driver->device_open(index, options ? options : &defaults, &device->impl);
    if (status != OXB_OK) {
        free(device);
        return status;
    }
    atomic_init(&device->refs, 1);
    device->driver = driver;
    driver->device_info(device->impl, &device->info);
    driver->abilities(device->impl, &device->abilities);
    status = front_check_device(device);
    if (status != OXB_OK) {
        driver->device_close(device->impl);
        free(device);
        return status;
    }
    pthread_mutex_init(&device->cache_lock, NULL);
    pthread_mutex_init(&device->flight_lock, NULL);
    pthread_cond_init(&device->flight_change, NULL);
    *out = device;
    return OXB_OK;
}

oxb_status oxb_device_open(const char *name, uint32_t index, const oxb_device_options *options,
                           oxb_device **device) {
    const oxb_driver *driver;
    if (name) {
        driver = driver_named(name);
        return driver ? open_with(driver, index, options, device) : no_driver(name);
    }
    oxb_status status = front_fail(OXB_DEVICE_NOT_FOUND, "this build has no driver");
    for (uint32_t i = 0; (driver = driver_at(i)); i++) {
        status = open_with(driver, index, options, device);
        if (status == OXB_OK) break;
    }
    return status;
}

void oxb_device_retain(oxb_device *device) {
    atomic_fetch_add_explicit(&device->refs, 1, memory_order_relaxed);
}

void oxb_device_release(oxb_device *device) {
    if (!device || atomic_fetch_sub_explicit(&device->refs, 1, memory_order_acq_rel) != 1) return;
    front_shipped_pipelines_free(device);
    device->driver->device_close(device->impl);
    pthread_mutex_destroy(&device->cache_lock);
    pthread_mutex_destroy(&device->flight_lock);
    pthread_cond_destroy(&device->flight_change);
    free(device->unraised);
    free(device);
}

void oxb_device_get_info(oxb_device *device, oxb_device_info *info) { *info = device->info; }

void oxb_device_get_stats(oxb_device *device, oxb_device_stats *stats) {
    pthread_mutex_lock(&device->flight_lock);
    uint32_t in_flight = device->in_flight;
    pthread_mutex_unlock(&device->flight_lock);
    *stats = (oxb_device_stats){.buffers = atomic_load(&device->buffers),
                                .allocated_bytes = atomic_load(&device->allocated_bytes),
                                .in_flight = in_flight,
                                .submissions = atomic_load(&device->submissions)};
}

static oxb_status no_capture(const oxb_device *device) {
    return front_fail(OXB_ENCODING_FAILED, "the %s device has no capture", device->driver->name);
}

oxb_status oxb_capture_start(oxb_device *device, const char *path) {
    const oxb_driver *driver = device->driver;
    return driver->capture_start ? driver->capture_start(device->impl, path) : no_capture(device);
}

oxb_status oxb_capture_stop(oxb_device *device) {
    const oxb_driver *driver = device->driver;
    return driver->capture_stop ? driver->capture_stop(device->impl) : no_capture(device);
}
