// A disk that forgets what was not flushed: a FUSE file system of two files, to try out what a power cut leaves behind.
//
//     disk    a block image; a loop device with a file system of its own goes on top
//     cut     write a number P to it: the power is cut when the disk is next told to flush something. Of the blocks that were
//             written and not flushed each survives with P per cent; from then on the disk answers every request with an
//             error. Write "now P": the power is cut at once. Write "heal": the power is back.
//
// Written blocks wait in memory until fsync, as they do in a drive's cache until it is told to flush: the loop device turns a
// flush of the file system above into an fsync here. So what a program has not synced is really gone.
//
//     gcc -O2 forgetful_disk.c -o forgetful_disk $(pkg-config --cflags --libs fuse3)
//     truncate -s 256M image; mkdir m; ./forgetful_disk image m SEED & losetup -f --show m/disk
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 4096 };

static int image;
static off_t image_bytes;
// By block number: what was written and not flushed, or NULL.
static char **unflushed;
static long unflushed_count;
static long lost_count;
static int is_dead;
// With how many per cent blocks survive the cut that comes with the next flush; none is to come when negative.
static int cut_to_come = -1;

static int is_disk(const char *path) { return strcmp(path, "/disk") == 0; }
static int is_cut(const char *path) { return strcmp(path, "/cut") == 0; }

static int get_attributes(const char *path, struct stat *out, struct fuse_file_info *file) {
    (void)file;
    memset(out, 0, sizeof *out);
    out->st_nlink = 1;
    if (strcmp(path, "/") == 0) {
        out->st_mode = S_IFDIR | 0755;
        return 0;
    }
    if (!is_disk(path) && !is_cut(path)) return -ENOENT;
    out->st_mode = S_IFREG | 0600;
    out->st_size = is_disk(path) ? image_bytes : BLOCK;
    return 0;
}

static int open_file(const char *path, struct fuse_file_info *file) {
    if (!is_disk(path) && !is_cut(path)) return -ENOENT;
    file->direct_io = 1;
    return 0;
}

static int set_size(const char *path, off_t size, struct fuse_file_info *file) {
    (void)size, (void)file;
    return is_cut(path) ? 0 : -EPERM;
}

static int read_flushed(char *to, size_t bytes, off_t at) {
    ssize_t got = pread(image, to, bytes, at);
    return got == (ssize_t)bytes ? 0 : -EIO;
}

static int read_disk(char *to, size_t bytes, off_t at) {
    size_t done = 0;
    while (done < bytes && at + (off_t)done < image_bytes) {
        off_t place = at + done;
        size_t within = place % BLOCK, part = BLOCK - within;
        if (part > bytes - done) part = bytes - done;
        const char *block = unflushed[place / BLOCK];
        if (block) memcpy(to + done, block + within, part);
        else if (read_flushed(to + done, part, place)) return -EIO;
        done += part;
    }
    return done;
}

static int read_file(const char *path, char *to, size_t bytes, off_t at, struct fuse_file_info *file) {
    (void)file;
    if (is_disk(path)) return is_dead ? -EIO : read_disk(to, bytes, at);
    char text[100];
    int length = snprintf(text, sizeof text, "unflushed %ld lost %ld dead %d\n", unflushed_count, lost_count, is_dead);
    if (at >= length) return 0;
    size_t part = length - at < (off_t)bytes ? (size_t)(length - at) : bytes;
    memcpy(to, text + at, part);
    return part;
}

static int write_disk(const char *from, size_t bytes, off_t at) {
    size_t done = 0;
    while (done < bytes) {
        off_t place = at + done;
        if (place >= image_bytes) return done ? (int)done : -ENOSPC;
        size_t within = place % BLOCK, part = BLOCK - within;
        if (part > bytes - done) part = bytes - done;
        char **block = &unflushed[place / BLOCK];
        if (!*block) {
            char *fresh = malloc(BLOCK);
            if (!fresh) return -ENOMEM;
            if (part < BLOCK && read_flushed(fresh, BLOCK, place - within)) {
                free(fresh);
                return -EIO;
            }
            *block = fresh;
            unflushed_count++;
        }
        memcpy(*block + within, from + done, part);
        done += part;
    }
    return done;
}

// Every block that waits is written with so many per cent, and forgotten else.
static int settle(int survive_percent) {
    int result = 0;
    for (off_t block = 0; block < image_bytes / BLOCK && unflushed_count; block++) {
        if (!unflushed[block]) continue;
        if (random() % 100 >= survive_percent) lost_count++;
        else if (pwrite(image, unflushed[block], BLOCK, block * BLOCK) != BLOCK) result = -EIO;
        free(unflushed[block]);
        unflushed[block] = NULL;
        unflushed_count--;
    }
    return result;
}

static int cut(int survive_percent) {
    cut_to_come = -1;
    is_dead = 1;
    return settle(survive_percent);
}

static int write_file(const char *path, const char *from, size_t bytes, off_t at, struct fuse_file_info *file) {
    (void)file;
    if (is_disk(path)) return is_dead ? -EIO : write_disk(from, bytes, at);
    char word[16] = "";
    memcpy(word, from, bytes < sizeof word - 1 ? bytes : sizeof word - 1);
    if (strncmp(word, "heal", 4) == 0) {
        is_dead = 0;
        return bytes;
    }
    if (strncmp(word, "now ", 4) == 0) return cut(atoi(word + 4)) ? -EIO : (int)bytes;
    cut_to_come = atoi(word);
    return bytes;
}

static int flush_disk(const char *path, int only_data, struct fuse_file_info *file) {
    (void)only_data, (void)file;
    if (!is_disk(path)) return 0;
    if (is_dead) return -EIO;
    if (cut_to_come < 0 || !unflushed_count) return settle(100);
    cut(cut_to_come);
    return -EIO;
}

int main(int count, char **arguments) {
    struct stat found;
    if (count != 4) {
        fprintf(stderr, "usage: forgetful_disk IMAGE MOUNTPOINT SEED\n");
        return 2;
    }
    image = open(arguments[1], O_RDWR);
    if (image < 0 || fstat(image, &found)) {
        perror(arguments[1]);
        return 1;
    }
    image_bytes = found.st_size / BLOCK * BLOCK;
    unflushed = calloc(image_bytes / BLOCK, sizeof *unflushed);
    srandom(strtoul(arguments[3], NULL, 10));
    struct fuse_operations operations = {
        .getattr = get_attributes,
        .open = open_file,
        .truncate = set_size,
        .read = read_file,
        .write = write_file,
        .fsync = flush_disk,
    };
    // In the foreground, one request at a time: nothing here needs a lock.
    char *fuse[] = {arguments[0], "-f", "-s", arguments[2]};
    return unflushed ? fuse_main(4, fuse, &operations, NULL) : 1;
}
