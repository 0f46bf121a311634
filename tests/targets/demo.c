/* The program that `make demo` looks into: four threads with different work.
 *
 *     demo [seconds | -]  default 8; -: until its standard input ends
 *
 * Each thread repeats the same piece of work until the time is over, or it is told to end, and each piece must give the
 * same checksum as the first: a profiler that disturbs a register or a word of memory is found out.
 * Prints one line for each thread, "hashing <checksum>", and one for all, "checksum <checksum>".  They
 * do not depend on the speed of the machine.  Exits with 1 if any two pieces differed.
 */
#include "target.h"

enum { NUMBERS = 20000, SIDE = 96, WORDS = 3000 };

static volatile uint64_t end_ns;

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

NAMED static uint64_t fnv1a(const void *bytes, size_t size, uint64_t hash) {
    const unsigned char *byte = bytes;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ byte[i]) * 0x100000001b3u;
    return hash;
}

static const uint64_t FNV_START = 0xcbf29ce484222325u;

/* hashing: blocks of a growing message */
NAMED static uint64_t hash_blocks(void) {
    unsigned char block[4096];
    uint64_t random = 1, hash = FNV_START;
    for (int round = 0; round < 200; round++) {
        for (size_t i = 0; i < sizeof block; i++)
            block[i] = (unsigned char)next_random(&random);
        hash = fnv1a(block, sizeof block, hash);
    }
    return hash;
}

/* sorting: a quicksort of our own and one through qsort */
NAMED static void quick_sort(uint32_t *first, uint32_t *last) {
    while (last - first > 1) {
        uint32_t pivot = first[(last - first - 1) / 2], *left = first, *right = last - 1;
        for (;; left++, right--) {
            while (*left < pivot)
                left++;
            while (*right > pivot)
                right--;
            if (left >= right)
                break;
            uint32_t swapped = *left;
            *left = *right;
            *right = swapped;
        }
        quick_sort(first, right + 1);
        first = right + 1;
    }
}

NAMED static int descending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x < y) - (x > y);
}

NAMED static uint64_t sort_numbers(void) {
    static uint32_t numbers[NUMBERS];
    uint64_t random = 2;
    for (int i = 0; i < NUMBERS; i++)
        numbers[i] = (uint32_t)next_random(&random);
    quick_sort(numbers, numbers + NUMBERS);
    uint64_t hash = fnv1a(numbers, sizeof numbers, FNV_START);
    qsort(numbers, NUMBERS, sizeof numbers[0], descending);
    return fnv1a(numbers, sizeof numbers, hash);
}

/* matrix: whole numbers, so that the order of additions cannot matter */
NAMED static void multiply(const uint64_t *a, const uint64_t *b, uint64_t *product) {
    for (int row = 0; row < SIDE; row++)
        for (int column = 0; column < SIDE; column++) {
            uint64_t sum = 0;
            for (int i = 0; i < SIDE; i++)
                sum += a[row * SIDE + i] * b[i * SIDE + column];
            product[row * SIDE + column] = sum;
        }
}

NAMED static uint64_t multiply_matrices(void) {
    static uint64_t matrix[3][SIDE * SIDE];
    uint64_t random = 3;
    for (int i = 0; i < SIDE * SIDE; i++) {
        matrix[0][i] = next_random(&random);
        matrix[1][i] = next_random(&random);
    }
    for (int power = 0; power < 8; power++) {
        multiply(matrix[0], matrix[1], matrix[2]);
        memcpy(matrix[0], matrix[2], sizeof matrix[0]);
    }
    return fnv1a(matrix[0], sizeof matrix[0], FNV_START);
}

/* strings: text that grows piece by piece on the heap */
NAMED static char *append_word(char *text, size_t *used, size_t *room, unsigned long number) {
    char word[32];
    size_t size = (size_t)snprintf(word, sizeof word, "%lx-%lu ", number, number % 997);
    if (*used + size + 1 > *room) {
        *room = *room * 5 / 4 + 64;
        text = realloc(text, *room);
        if (!text)
            die("realloc");
    }
    memcpy(text + *used, word, size + 1);
    *used += size;
    return text;
}

NAMED static uint64_t build_strings(void) {
    size_t used = 0, room = 0;
    char *text = NULL;
    uint64_t random = 4;
    for (int i = 0; i < WORDS; i++)
        text = append_word(text, &used, &room, (unsigned long)next_random(&random));
    uint64_t hash = fnv1a(text, used, FNV_START);
    free(text);
    return hash;
}

struct job {
    const char *name;
    uint64_t (*piece)(void);
    uint64_t checksum;
    int differed;
};

static void *work(void *argument) {
    struct job *job = argument;
    job->checksum = job->piece();
    while (now_ns() < end_ns)
        if (job->piece() != job->checksum)
            job->differed = 1;
    return NULL;
}

int main(int argc, char **argv) {
    static struct job jobs[] = {
        {"hashing", hash_blocks, 0, 0},
        {"sorting", sort_numbers, 0, 0},
        {"matrix", multiply_matrices, 0, 0},
        {"strings", build_strings, 0, 0},
    };
    enum { JOBS = sizeof jobs / sizeof jobs[0] };
    pthread_t threads[JOBS];
    int until_told = argc > 1 && !strcmp(argv[1], "-");
    double seconds = argc > 1 && !until_told ? atof(argv[1]) : 8;
    end_ns = until_told ? UINT64_MAX : now_ns() + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < JOBS; i++)
        threads[i] = start_thread(jobs[i].name, work, &jobs[i]);
    ready();
    if (until_told) {
        while (getchar() != EOF) {
        }
        end_ns = 0;
    }
    uint64_t all = FNV_START;
    int differed = 0;
    for (int i = 0; i < JOBS; i++) {
        pthread_join(threads[i], NULL);
        printf("%s %016lx%s\n", jobs[i].name, (unsigned long)jobs[i].checksum,
               jobs[i].differed ? " DIFFERED" : "");
        all = fnv1a(&jobs[i].checksum, sizeof jobs[i].checksum, all);
        differed |= jobs[i].differed;
    }
    printf("checksum %016lx\n", (unsigned long)all);
    return differed;
}
