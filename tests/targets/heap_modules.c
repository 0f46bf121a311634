/* A program whose modules are as the dynamic linker has them on the way: "open" makes the pages of its own slots
 * writable, as they are before a library is relocated, "close" read-only again.  "load", "unload": the library
 * that argv[1] names, "late" allocates 1009 blocks of 101 bytes there; "go" does so here. */
#include "target.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

static void *library;
static void *(*late_alloc)(size_t);
static void *volatile kept;

NAMED static void *make(size_t size) {
    void *block = malloc(size);
    KEEP_FRAME();
    return block;
}

NAMED static void *make_late(size_t size) {
    void *block = late_alloc(size);
    KEEP_FRAME();
    return block;
}

static int protect(struct dl_phdr_info *info, size_t size, void *protection) {
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_GNU_RELRO) {
            uintptr_t low = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr, high = low + info->dlpi_phdr[i].p_memsz;
            low &= -4096UL;
            if (mprotect((void *)low, (high & -4096UL) - low, *(int *)protection))
                die("mprotect");
        }
    return 1; /* the program alone, which is the first */
}

int main(int argc, char **argv) {
    char line[64];
    int opened = PROT_READ | PROT_WRITE, closed = PROT_READ;
    kept = make(1);
    ready();
    while (read_line(line, sizeof line, NULL)) {
        if (!strcmp(line, "open"))
            dl_iterate_phdr(protect, &opened);
        else if (!strcmp(line, "close"))
            dl_iterate_phdr(protect, &closed);
        else if (!strcmp(line, "load")) {
            library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
            if (!library)
                die(dlerror());
            *(void **)&late_alloc = dlsym(library, "heap_late_alloc");
        } else if (!strcmp(line, "unload"))
            dlclose(library);
        else
            for (int i = 0; i < 1009; i++)
                kept = !strcmp(line, "late") ? make_late(101) : make(101);
        printf("done %p\n", *(void **)&late_alloc);
        fflush(stdout);
    }
    puts("end");
    return 0;
}
