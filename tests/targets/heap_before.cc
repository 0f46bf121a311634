// A heap with a history, and a list of what of it is in use: heap_before FILE.  Blocks of all sizes, by several threads
// (arenas of their own), many of them freed again (caches, fast bins, bins), large ones with mappings of their own, and
// objects of classes.  Writes "ADDRESS in-use|freed" lines, then says ready and waits for a line.
#include "target.h"

#include <cstddef>
#include <memory>
#include <vector>

namespace geometry {
struct Shape {
    virtual ~Shape() = default;
    virtual double area() const = 0;
    double x = 0;
};
struct Circle : Shape {
    double area() const override { return x * 3; }
    double radius = 1;
};
template <class T> struct Square : Shape {
    double area() const override { return x; }
    T side{};
};
}  // namespace geometry

static FILE *report;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t meet;
static std::unique_ptr<std::vector<std::unique_ptr<geometry::Shape>>> shapes;

static void say(const void *block, const char *what) {
    pthread_mutex_lock(&lock);
    fprintf(report, "%p %s\n", block, what);
    pthread_mutex_unlock(&lock);
}

static void allocate(unsigned seed) {
    void *blocks[4000];
    for (int i = 0; i < 4000; i++) {
        blocks[i] = malloc(rand_r(&seed) % (i % 50 ? 300 : 5000));
        memset(blocks[i], i, i % 50 ? 1 : 0);
    }
    for (int i = 0; i < 4000; i++)
        if (i % 3 == 0 || (i > 1000 && i < 1500)) {
            say(blocks[i], "freed");
            free(blocks[i]);
            blocks[i] = nullptr;
        }
    for (void *block : blocks)
        if (block)
            say(block, "in-use");
    memset(blocks, 0, sizeof blocks);
    KEEP_FRAME();
}

static void *thread(void *argument) {
    allocate(*static_cast<unsigned *>(argument));
    pthread_barrier_wait(&meet);
    for (;;)
        pause();
    return nullptr;
}

int main(int count, char **words) {
    static unsigned seeds[3] = {1, 2, 3};
    report = fopen(count > 1 ? words[1] : "/dev/null", "w");
    if (!report)
        die("fopen");
    pthread_barrier_init(&meet, nullptr, 4);
    for (unsigned &seed : seeds) {
        pthread_t id;
        pthread_create(&id, nullptr, thread, &seed);
    }
    allocate(4);
    pthread_barrier_wait(&meet);
    void *large[6];
    for (int i = 0; i < 6; i++)
        large[i] = malloc((300 + 100 * static_cast<size_t>(i)) << 10);
    free(large[2]);
    for (int i = 0; i < 6; i++)
        if (i != 2)
            say(large[i], "in-use");
    shapes = std::make_unique<std::vector<std::unique_ptr<geometry::Shape>>>();
    for (int i = 0; i < 3001; i++)
        shapes->push_back(std::make_unique<geometry::Circle>());
    for (int i = 0; i < 507; i++)
        shapes->push_back(std::make_unique<geometry::Square<int>>());
    fflush(report);
    ready();
    char line[16];
    read_line(line, sizeof line, nullptr);
    return 0;
}
