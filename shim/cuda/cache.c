/* Compiled code in the user's cache directory: $XDG_CACHE_HOME or ~/.cache, there oxibonsai/cuda.
 *
 * The machine code is run as it is found, so the directory must belong to this user and be writable
 * by nobody else, and an entry whose length or digest is wrong is ignored. Entries are written to a
 * temporary file and renamed, so that none is ever partial. Any failure is a miss: the code is
 * compiled again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda_driver.h"

#define MAX_ENTRY ((uint64_t)256 << 20)

typedef struct header {
    char mark[8];
    uint64_t length; /* of the code, which follows */
    unsigned char digest[CUDA_DIGEST_BYTES];
} header;

static const char mark[8] = {'O', 'X', 'B', 'C', 'U', 'D', 'A', '1'};

static void digest_of(const char *bytes, size_t length, unsigned char digest[CUDA_DIGEST_BYTES]) {
    cuda_hash hash;
    cuda_hash_begin(&hash);
    cuda_hash_add(&hash, bytes, length);
    cuda_hash_end(&hash, digest);
}

/* Open a directory below `at`, making it where it is missing; -1 where it is not safe to use. */
static int open_below(int at, const char *name, bool private) {
    if (mkdirat(at, name, 0700) != 0 && errno != EEXIST) return -1;
    int directory =
        openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (private ? O_NOFOLLOW : 0));
    struct stat info;
    if (directory < 0) return -1;
    if (private &&
        (fstat(directory, &info) != 0 || info.st_uid != geteuid() || (info.st_mode & 022))) {
        close(directory);
        return -1;
    }
    return directory;
}

static int open_directory(void) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int root = -1;
    if (cache && cache[0] == '/') {
        root = open_below(AT_FDCWD, cache, false);
    } else if (home && home[0] == '/') {
        int at = open(home, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (at < 0) return -1;
        root = open_below(at, ".cache", false);
        close(at);
    }
    if (root < 0) return -1;
    int ours = open_below(root, "oxibonsai", true);
    close(root);
    if (ours < 0) return -1;
    int directory = open_below(ours, "cuda", true);
    close(ours);
    return directory;
}

static bool read_all(int file, void *to, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = read(file, (char *)to + done, length - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

static bool write_all(int file, const void *from, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = write(file, (const char *)from + done, length - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

static void name_of(const unsigned char key[CUDA_DIGEST_BYTES],
                    char name[2 * CUDA_DIGEST_BYTES + 1]) {
    for (unsigned i = 0; i < CUDA_DIGEST_BYTES; i++) snprintf(name + 2 * i, 3, "%02x", key[i]);
}

static bool read_entry(int file, cuda_code *code) {
    header head;
    struct stat info;
    unsigned char digest[CUDA_DIGEST_BYTES];
    if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode) || info.st_uid != geteuid()) return false;
    if (!read_all(file, &head, sizeof head) || memcmp(head.mark, mark, sizeof mark) != 0)
        return false;
    if (head.length == 0 || head.length > MAX_ENTRY ||
        (uint64_t)info.st_size != sizeof head + head.length)
        return false;
    size_t length = (size_t)head.length;
    char *bytes = malloc(length + 1);
    if (!bytes) return false;
    bytes[length] = '\0'; /* PTX is a string */
    bool whole = read_all(file, bytes, length);
    if (whole) digest_of(bytes, length, digest);
    if (!whole || memcmp(digest, head.digest, sizeof digest) != 0) {
        free(bytes);
        return false;
    }
    *code = (cuda_code){bytes, length};
    return true;
}

bool cuda_cache_get(const unsigned char key[CUDA_DIGEST_BYTES], cuda_code *code) {
    char name[2 * CUDA_DIGEST_BYTES + 1];
    name_of(key, name);
    int directory = open_directory();
    if (directory < 0) return false;
    int file = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    close(directory);
    if (file < 0) return false;
    bool found = read_entry(file, code);
    close(file);
    return found;
}

void cuda_cache_put(const unsigned char key[CUDA_DIGEST_BYTES], const cuda_code *code) {
    static unsigned long count;
    char name[2 * CUDA_DIGEST_BYTES + 1], temporary[80];
    name_of(key, name);
    if (code->length == 0 || code->length > MAX_ENTRY) return;
    int directory = open_directory();
    if (directory < 0) return;
    /* A name of this process's and, among its threads, of this call's. */
    unsigned long number = __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
    snprintf(temporary, sizeof temporary, "new-%ld-%lu", (long)getpid(), number);
    int file =
        openat(directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file >= 0) {
        header head = {.length = code->length};
        memcpy(head.mark, mark, sizeof mark);
        digest_of(code->bytes, code->length, head.digest);
        bool written =
            write_all(file, &head, sizeof head) && write_all(file, code->bytes, code->length);
        written = close(file) == 0 && written;
        if (!written || renameat(directory, temporary, directory, name) != 0)
            (void)unlinkat(directory, temporary, 0);
    }
    close(directory);
}
