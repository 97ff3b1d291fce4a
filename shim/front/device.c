/* Devices. */
#include <stdlib.h>

#include "front.h"

oxb_status oxb_device_count(const char *name, uint32_t *count) {
    const oxb_driver *driver = front_driver_named(name);
    if (!driver) return front_no_driver(name);
    return driver->device_count(count);
}

const char *oxb_device_variant(const char *name, uint32_t index) {
    const oxb_driver *driver = front_driver_named(name);
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

/* The first device of a driver that can be had, from `index` on. */
static oxb_status open_first(const oxb_driver *driver, uint32_t index,
                             const oxb_device_options *options, oxb_device **device) {
    uint32_t count = 0;
    oxb_status status = open_with(driver, index, options, device);
    while (status == OXB_DEVICE_NOT_FOUND && driver->device_count(&count) == OXB_OK &&
           ++index < count)
        status = open_with(driver, index, options, device);
    return status;
}

oxb_status oxb_device_open(const char *name, uint32_t index, const oxb_device_options *options,
                           oxb_device **device) {
    const oxb_driver *driver;
    if (name) {
        driver = front_driver_named(name);
        return driver ? open_with(driver, index, options, device) : front_no_driver(name);
    }
    oxb_status status = front_fail(OXB_DEVICE_NOT_FOUND, "this build has no driver");
    for (uint32_t i = 0; (driver = front_driver_at(i)); i++) {
        status = open_first(driver, index, options, device);
        /* The next one only where there is none: a device that is there but whose kernels fail, as
         * those of a metallib that was asked for, is not passed over. */
        if (status != OXB_DEVICE_NOT_FOUND) break;
    }
    return status;
}

void oxb_device_retain(oxb_device *device) {
    atomic_fetch_add_explicit(&device->refs, 1, memory_order_relaxed);
}

void oxb_device_release(oxb_device *device) {
    if (!device || atomic_fetch_sub_explicit(&device->refs, 1, memory_order_acq_rel) != 1) return;
    front_shipped_pipelines_free(device);
    front_choices_free(device);
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
    *stats = (oxb_device_stats){
        .buffers = atomic_load(&device->buffers),
        .allocated_bytes = atomic_load(&device->allocated_bytes),
        .in_flight = in_flight,
        .submissions = atomic_load(&device->submissions),
        .work_per_second = device->driver->work_rate ? device->driver->work_rate(device->impl) : 0};
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
