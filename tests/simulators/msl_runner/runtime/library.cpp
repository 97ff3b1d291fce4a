// Compiled kernels: a shared library with a table of entries, and a text file beside it that has
// what only the compiled code tells: threadgroup memory, and the source line of each address.
#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>

#include "state.h"

struct msl_library {
    void *handle = nullptr;
    std::string path;
    msl::u64 image_begin = 0, image_end = 0;
    bool check = false;
    std::vector<msl_kernel> kernels;
    std::vector<msl::EntryFunction> functions;
    std::vector<std::vector<msl_argument>> arguments;
    std::vector<std::vector<msl_constant>> constants;
};

namespace msl {
namespace {

constexpr int kMapVersion = 1;

std::string map_path(const msl_library *library) {
    const std::string &path = library->path;
    return path.substr(0, path.rfind('.')) + ".map";
}

void find_image(msl_library *library) {
    dl_iterate_phdr(
        [](dl_phdr_info *info, size_t, void *data) {
            auto *lib = static_cast<msl_library *>(data);
            link_map *map;
            if (dlinfo(lib->handle, RTLD_DI_LINKMAP, &map) || map->l_addr != info->dlpi_addr ||
                strcmp(map->l_name, info->dlpi_name) != 0)
                return 0;
            u64 low = ~0ull, high = 0;
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const auto &segment = info->dlpi_phdr[i];
                if (segment.p_type != PT_LOAD) continue;
                low = std::min<u64>(low, segment.p_vaddr);
                high = std::max<u64>(high, segment.p_vaddr + segment.p_memsz);
            }
            lib->image_begin = info->dlpi_addr + low;
            lib->image_end = info->dlpi_addr + high;
            return 1;
        },
        library);
}

void describe(msl_library *library, const msl_entry &e) {
    std::vector<msl_argument> arguments;
    for (u32 i = 0; i < e.n_arguments; i++) {
        const msl_entry_argument &a = e.arguments[i];
        arguments.push_back(
            {a.kind, a.index, a.writable, a.by_reference, a.size, a.alignment, a.name});
    }
    std::vector<msl_constant> constants;
    for (u32 i = 0; i < e.n_constants; i++) {
        const msl_entry_constant &c = e.constants[i];
        constants.push_back({c.index, c.required, c.defined, c.name, c.type});
    }
    library->arguments.push_back(std::move(arguments));
    library->constants.push_back(std::move(constants));
    library->kernels.push_back(
        {e.name, nullptr, nullptr, e.n_arguments, e.n_constants, e.max_threads, 0});
}

// Lines of the map before its table of source lines.
bool read_map(msl_library *library) {
    std::ifstream file(map_path(library));
    int version = 0;
    std::string word;
    if (!(file >> word >> version) || word != "msl-map" || version != kMapVersion) return false;
    while (file >> word && word != "lines") {
        std::string name;
        u32 bytes;
        if (word != "threadgroup" || !(file >> bytes >> std::ws) || !std::getline(file, name))
            return false;
        for (msl_kernel &k : library->kernels)
            if (name == k.name) k.static_threadgroup_bytes = bytes;
    }
    return word == "lines";
}

msl_library *refuse(msl_library *library, char *error, size_t size, const std::string &text) {
    if (size) snprintf(error, size, "%s", text.c_str());
    if (library->handle) dlclose(library->handle);
    delete library;
    return nullptr;
}

} // namespace

u64 library_base(const msl_library *library) { return library->image_begin; }

bool library_checks(const msl_library *library) { return library->check; }

void describe_launch(const msl_library *library, const msl_kernel *kernel, Launch *launch) {
    launch->library = library;
    launch->kernel = kernel;
    launch->run = library->functions[static_cast<size_t>(kernel - library->kernels.data())];
    launch->check = library->check;
    launch->image_begin = library->image_begin;
    launch->image_end = library->image_end;
}

// FILE:LINE of the code at an offset in the library. Read from the file, since errors are rare.
std::string library_line(const msl_library *library, u64 offset) {
    std::ifstream file(map_path(library));
    std::string text, best = "an unknown line";
    while (std::getline(file, text) && text != "lines") continue;
    std::vector<std::string> files;
    while (std::getline(file, text)) {
        std::istringstream line(text);
        std::string word;
        line >> word;
        if (word == "file") {
            files.push_back(text.substr(5));
            continue;
        }
        u64 start, number;
        size_t which;
        std::istringstream(word) >> std::hex >> start;
        if (!(line >> which >> number) || start > offset) break;
        best = number && which < files.size() ? files[which] + ":" + std::to_string(number)
                                              : "an unknown line";
    }
    return best;
}

} // namespace msl

using namespace msl;

MSL_API msl_library *msl_library_open(const char *path, char *error, size_t error_size) {
    auto *library = new msl_library;
    library->path = path;
    library->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library->handle) return refuse(library, error, error_size, dlerror());
    auto *entries = static_cast<const msl_entry *>(dlsym(library->handle, "msl_entries"));
    auto *count = static_cast<const u32 *>(dlsym(library->handle, "msl_n_entries"));
    auto *check = static_cast<const u32 *>(dlsym(library->handle, "msl_check_build"));
    if (!entries || !count || !check)
        return refuse(library, error, error_size, library->path + " is no library of msl.compile");
    library->check = *check != 0;
    find_image(library);
    for (u32 i = 0; i < *count; i++) describe(library, entries[i]);
    for (u32 i = 0; i < *count; i++) {
        const std::string name = "msl_entry_" + std::to_string(i);
        library->functions.push_back(
            reinterpret_cast<EntryFunction>(dlsym(library->handle, name.c_str())));
        library->kernels[i].arguments = library->arguments[i].data();
        library->kernels[i].constants = library->constants[i].data();
    }
    if (!read_map(library))
        return refuse(library, error, error_size,
                      map_path(library) + " is missing or of another version");
    return library;
}

MSL_API void msl_library_close(msl_library *library) {
    if (!library) return;
    dlclose(library->handle);
    delete library;
}

MSL_API u32 msl_library_count(const msl_library *library) {
    return static_cast<u32>(library->kernels.size());
}

MSL_API const msl_kernel *msl_library_kernel(const msl_library *library, u32 index) {
    return index < library->kernels.size() ? &library->kernels[index] : nullptr;
}

MSL_API const msl_kernel *msl_library_find(const msl_library *library, const char *name) {
    for (const msl_kernel &k : library->kernels)
        if (!strcmp(k.name, name)) return &k;
    return nullptr;
}
